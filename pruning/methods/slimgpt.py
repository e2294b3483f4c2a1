"""SlimGPT: sequential structured pruning by batched greedy OBS (arXiv:2412.18110)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from omegaconf import MISSING

from pruning.methods.method import Method, Plan, Subject
from pruning.search.search import Schedule


class HeadScore(StrEnum):
    """What orders attention heads."""

    exact = "exact"  # the loss increase of removing a head, as in ZipLM
    grouped_cholesky = "grouped_cholesky"  # the published score


class ChannelScore(StrEnum):
    """What orders FFN channels."""

    obs = "obs"  # Batched Greedy Pruning, the published score
    wanda = "wanda"  # |w|^2 E[x^2] (arXiv:2306.11695), needs far fewer calibration tokens


@dataclass
class SlimGPT(Method):
    """Prunes block by block on the activations that the pruned blocks before it give.

    Attention heads leave one by one, FFN channels in groups of falling size (Batched Greedy
    Pruning); how much of a block goes is the schedule's choice (`search=schedule`). As in our
    ZipLM the ridge of the weight update is chosen per site by the error on held-out tokens.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.18110"
    searches: ClassVar[type[Schedule]] = Schedule
    dial: ClassVar[str] = "ratio"

    ratio: float | None = MISSING  # mean share of every block to remove; null: as speedup asks
    score: HeadScore = MISSING
    ffn_score: ChannelScore = MISSING
    largest: int = MISSING  # channels that leave together, at most
    smallest: int = MISSING  # and at least
    decay: int = MISSING  # a group has half of what is left of the last one without these
    damp: float = MISSING  # ridge of the scores, a share of each input's energy
    ridges: list[float] = MISSING  # candidates for the ridge of the update, ascending; .inf allowed

    def __post_init__(self) -> None:
        if isinstance(self.ratio, float) and not 0 < self.ratio < 1:
            raise ValueError(f"method.ratio={self.ratio} must lie between 0 and 1, or be null")
        if isinstance(self.damp, float) and self.damp < 0:
            raise ValueError(f"method.damp={self.damp} must be at least 0")
        for field in ("largest", "smallest"):
            value = getattr(self, field)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"method.{field}={value} must be at least 1")
        if isinstance(self.ridges, list) and (
            not self.ridges or sorted(self.ridges) != self.ridges or self.ridges[0] < 0
        ):
            raise ValueError(f"method.ridges={self.ridges} must be ascending and not negative")

    def group_sizes(self, channels: int) -> list[int]:
        """Return the Dynamic Group Size: how many of `channels` leave in each step.

        The first group is half of `channels` less `decay`, each further one half of the one before
        less `decay`, within [smallest, largest].
        """
        sizes: list[int] = []
        size = channels
        while sum(sizes) < channels:
            size = (size - self.decay) // 2
            left = channels - sum(sizes)
            sizes.append(min(left, max(size, self.smallest), self.largest))
        return sizes

    def plan(self, subject: Subject) -> Plan:
        """Scale the schedule; blocks are pruned once the shapes are settled."""
        from pruning.methods.plans import SchedulePlan

        return SchedulePlan.of(self, subject)
