"""SlimGPT: sequential structured pruning by batched greedy OBS (arXiv:2412.18110)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.method import (
    Method,
    Plan,
    PruningContext,
    check_ridges,
    default_ridges,
)
from pruning.search.search import Schedule, Search

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from pruning.calibration.calibration import Calibration
    from pruning.latency.table import Shapes
    from pruning.models.sites import Allocation, Site
    from pruning.solver.obs import Removal, Units


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
    search_type: ClassVar[type[Schedule]] = Schedule
    ratio_option: ClassVar[str] = "ratio"

    name: str = "slimgpt"
    ratio: float | None = None  # mean share of every block to remove; then speedup=null
    score: HeadScore = HeadScore.exact  # order of the heads
    ffn_score: ChannelScore = ChannelScore.obs  # order of the FFN channels
    largest: int = 1024  # FFN channels that leave together, at most
    smallest: int = 64  # and at least; the paper's text ends at 8
    decay: int = 512  # a group has half the size of the one before, less half of this
    damp: float = 0.01  # ridge of the scores, as a share of each input's energy
    # candidates for the ridge of the update, ascending; per site by held-out error
    ridges: list[float] = field(default_factory=default_ridges)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("ratio", above=0, below=1)
        check_ridges(self.damp, self.ridges)
        self.check_range("largest", "smallest", least=1)
        self.check_range("decay", least=0)

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

    def sites(self, model: "PreTrainedModel") -> "list[Site]":
        """List attention and FFNs; ValueError where there are experts."""
        from pruning.models.sites import Kind

        prunable = super().sites(model)
        if any(site.kind is Kind.EXPERTS for site in prunable):
            raise ValueError(
                f"method={self.name} solves one projection of a sub-block after the other, and "
                "experts have many at once: give method=ziplm, or a model without experts"
            )
        return prunable

    def cost(
        self, model: "PreTrainedModel", tokens: int, calibration: "Calibration", search: Search
    ) -> dict[str, float | None]:
        """Count the passes of pruning block by block."""
        from pruning.methods.sequential import passes

        return {"prune": passes(calibration) * tokens}

    def plan(self, context: PruningContext) -> Plan:
        """Scale the schedule; blocks are pruned once the shapes are settled.

        ValueError where processes are to share the batches.
        """
        if (launcher := context.calibration.options.launcher) is not None:
            raise ValueError(
                f"calibration.launcher={launcher!r} shares the moments of the dense model, and "
                f"method={self.name} reads those of the pruned one: give null"
            )
        return SchedulePlan.from_context(self, context)


class SchedulePlan(Plan):
    """SlimGPT at any scale of its schedule."""

    expensive = True

    def __init__(
        self,
        method: "SlimGPT",
        context: PruningContext,
        choose: "Callable[[float], Shapes | None]",
        given: "Shapes | None",
    ):
        self.method, self.context = method, context
        self._choose, self.fixed_shapes = choose, given

    @classmethod
    def from_context(cls, method: "SlimGPT", context: PruningContext) -> "SchedulePlan":
        """Prepare the schedule."""
        from pruning.models.sites import sites
        from pruning.search.schedule import chooser, every_shape, shapes

        search, table = context.search, context.table
        assert isinstance(search, Schedule)
        prunable = sites(context.dense.model)
        given = None
        if method.ratio is not None:
            options = {site: every_shape(site, table.alignment) for site in prunable}
            given = shapes(search.form(), options, method.ratio)
        choose = chooser(
            search.form(), {site: table.levels(site) for site in prunable}, table.total
        )
        return cls(method, context, choose, given)

    def choose(self, budget: float) -> "Shapes | None":
        """Return the shapes of the least ratios that fit a budget."""
        return self._choose(budget)

    def timing_model(self, shapes: "Shapes") -> "tuple[PreTrainedModel, Allocation]":
        """Cut the last units of every site: as fast as the model to come, and as large."""
        from pruning.models.allocation import first_units
        from pruning.models.shrink import copy_sharing_weights, shrink_

        allocation = {site: first_units(site, shape) for site, shape in shapes.items()}
        return shrink_(copy_sharing_weights(self.context.dense.model), allocation), allocation

    def build(self, shapes: "Shapes") -> "tuple[PreTrainedModel, Allocation]":
        """Prune block after block, each on what the pruned ones before it give."""

        from pruning.methods.sequential import sequential
        from pruning.solver.ordering import kept_units

        def decide(site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
            return kept_units(site, W, H, [shapes[site]], self._remove, self.method.damp)[0]

        chosen = [asdict(self.method), {site.name: shape.plain for site, shape in shapes.items()}]
        given = self.context, self.method.ridges, decide, chosen
        pruned, allocation, self.updates = sequential(*given)
        return pruned, allocation

    def _remove(self, W: "Tensor", H: "Tensor", units: "Units") -> "Removal":
        from pruning.solver.obs import batched, by_wanda, greedy

        damp, channels = self.method.damp, units.width == 1
        if channels and self.method.ffn_score is ChannelScore.wanda:
            return by_wanda(W, H, units)
        if channels:
            assert units.steps is not None
            return batched(W, H, self.method.group_sizes(units.steps), damp)
        grouped = self.method.score is HeadScore.grouped_cholesky
        return greedy(W, H, units, damp, grouped_cholesky=grouped)
