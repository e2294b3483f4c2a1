"""SlimGPT: sequential structured pruning by batched greedy OBS (arXiv:2412.18110)."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

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

    name: str = "slimgpt"
    ratio: float | None = None  # mean share of every block to remove; then speedup=null
    score: HeadScore = HeadScore.exact  # order of the heads
    ffn_score: ChannelScore = ChannelScore.obs  # order of the FFN channels
    largest: int = 1024  # FFN channels that leave together, at most
    smallest: int = 64  # and at least; the paper's text ends at 8
    decay: int = 512  # a group has half the size of the one before, less half of this
    damp: float = 0.01  # ridge of the scores, as a share of each input's energy
    # candidates for the ridge of the update, ascending; per site by held-out error
    ridges: list[float] = field(
        default_factory=lambda: [0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, math.inf]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.ratio, float) and not 0 < self.ratio < 1:
            raise ValueError(f"method.ratio={self.ratio} must lie between 0 and 1, or be null")
        if isinstance(self.damp, float) and self.damp < 0:
            raise ValueError(f"method.damp={self.damp} must be at least 0")
        for name in ("largest", "smallest"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"method.{name}={value} must be at least 1")
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
