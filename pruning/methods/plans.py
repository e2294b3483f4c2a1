"""What methods with levels do once shapes are chosen."""

from collections.abc import Sequence

from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel

from pruning.latency.table import Shapes
from pruning.methods.compensation import compensate_
from pruning.methods.method import Plan, PruningContext
from pruning.methods.sequential import sequential, updates_behind
from pruning.models.sites import Allocation
from pruning.search.options import Chooser
from pruning.solver.levels import Levels

Keep = Bool[Tensor, " units"]


class LevelsPlan(Plan):
    """Levels, and a search that has prepared to choose among them."""

    def __init__(
        self,
        context: PruningContext,
        levels: Levels,
        choose: Chooser,
        ridges: Sequence[float],
        compensate: bool = False,
        searched: Sequence[dict[str, float]] = (),
    ):
        self.context, self.levels, self._choose = context, levels, choose
        self.search_history = searched
        self.ridges = ridges  # candidates for an update behind pruned blocks
        self.compensate = compensate  # for what is gone
        self._behind = updates_behind(context.calibration.options, ridges)
        self.expensive = self._behind or levels.drafts(context.dense.model)

    def choose(self, budget: float) -> Shapes | None:
        """Return the shapes of the levels that the search chooses."""
        choice = self._choose(budget)
        if choice is None:
            return None
        pairs = zip(self.levels.items(), choice, strict=True)
        return {site: levels.shapes[level] for (site, levels), level in pairs}

    def timing_model(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Return a model to time."""
        return self.levels.timing_model(self.context.dense.model, self._chosen(shapes))

    def build(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Cut the levels; for dense targets, solve their weights behind pruned blocks.

        Then compensate for sub-blocks that are gone.
        """
        choice = self._chosen(shapes)
        if self._behind:
            keeps, identity = self.levels.allocation(choice), [self.levels.identity, choice]
            given = self.context, self.ridges, lambda site, W, H: keeps[site]
            pruned, allocation, self.updates = sequential(*given, identity)
            made = pruned, allocation
        else:
            made = self.levels.cut(self.context.dense.model, choice)
        if self._removes(shapes):
            compensate_(self.context, self.ridges, *made)
        return made

    def is_draft(self, shapes: Shapes) -> bool:
        """Tell whether weights are solved, or what is gone compensated, once shapes are settled."""
        return self.expensive or self._removes(shapes)

    def _removes(self, shapes: Shapes) -> bool:
        """Tell whether something is gone that will be compensated for."""
        return self.compensate and any(not shape.units for shape in shapes.values())

    def _chosen(self, shapes: Shapes) -> list[int]:
        return [levels.shapes.index(shapes[site]) for site, levels in self.levels.items()]
