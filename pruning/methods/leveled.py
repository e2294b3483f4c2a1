"""Methods that solve every site at many levels, for a search to choose from."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.method import Method, Plan, PruningContext
from pruning.search.search import LevelSearch, Search

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from pruning.calibration.calibration import Calibration
    from pruning.calibration.moment import Split
    from pruning.models.shape import Shape
    from pruning.models.sites import Site
    from pruning.solver.experts import ExpertSite
    from pruning.solver.levels import Levels, SiteLevels


@dataclass
class Leveled(Method):
    """A method whose levels depend on the dense model's activations only, not on the target."""

    search_type: ClassVar[type[LevelSearch]] = LevelSearch
    ridges = (math.inf,)  # candidates for the ridge of a weight update; infinite: none
    compensate = False  # the projection in front of what is gone takes over what that gave

    @abstractmethod
    def site_levels(
        self, site: "Site", W: "Tensor", split: "Split", shapes: "Sequence[Shape]"
    ) -> "SiteLevels":
        """Return the levels of one site at the given shapes."""

    def expert_scores(self, given: "ExpertSite") -> "Tensor":
        """Return what every expert of a block is worth, REAP's score; the least goes first."""
        return given.routed.reap

    def levels(self) -> "type[Levels]":
        """Return what makes models of the levels."""
        from pruning.solver.levels import Levels

        return Levels

    def cost(
        self, model: "PreTrainedModel", tokens: int, calibration: "Calibration", search: Search
    ) -> dict[str, float | None]:
        """Count the passes of moments, folds and the search, and of updates behind pruned blocks.

        Where held-out moments are not stored, levels, folds and weights take them again.
        """
        from pruning.calibration.moments import stored_bytes
        from pruning.methods.compensation import read_again
        from pruning.methods.sequential import passes, updates_behind
        from pruning.solver.folds import PASSES as PASSES_OF_FOLDS

        both = stored_bytes(self.sites(model), model.config.hidden_size)
        retaken = calibration.held_out * tokens if calibration.stored.drops(both) else 0.0
        behind = updates_behind(calibration, self.ridges)
        folded = self.searches_with_folds(model, search)
        folds = PASSES_OF_FOLDS * tokens + retaken if folded else 0.0
        updates = passes(calibration) * tokens if behind else retaken
        prune = {"prune": updates + (read_again(model, tokens) if self.folds(model) else 0.0)}
        return cost_of_levels(self, model, tokens, search, folds) | {"levels": retaken} | prune

    def folds(self, model: "PreTrainedModel") -> bool:
        """Tell whether what is gone is compensated for in such a model."""
        from pruning.models.gaps import outputs_add_up

        return self.compensate and outputs_add_up(model)

    def searches_with_folds(self, model: "PreTrainedModel", search: Search) -> bool:
        """Tell whether the search measures what is gone with what takes it over."""
        return isinstance(search, LevelSearch) and search.measures and self.folds(model)

    def plan(self, context: PruningContext) -> Plan:
        """Turn moments into levels; let the search prepare to choose among them."""
        from pruning.calibration.moments import Moments
        from pruning.methods.plans import LevelsPlan
        from pruning.search.problem import build_problem
        from pruning.solver.folds import Folds

        c, dense, batches = context, context.dense.model, context.calibration.batches
        clock, cache = c.job.stopwatch, c.job.cache
        assert isinstance(c.search, LevelSearch)
        assert c.speedup is not None, "Experiment asks for a ratio where there is no speedup"
        with clock("calibrate"):
            text, sites = c.calibration.options, self.sites(dense)
            moments = Moments.collect(c.dense, batches, text, sites, cache)
        with clock("levels"):
            levels = self.levels().from_moments(dense, moments, self, c.table, cache)
        if self.searches_with_folds(dense, c.search):
            with clock("folds"):
                levels.folds = Folds.collect(c.dense, batches, text, self.ridges, moments, cache)
        with clock("search"), c.search.trial(dense, levels, batches) as trial:
            problem = build_problem(levels, c.table, trial, cache, c.job.seed)
            choose = c.search.prepare(problem, c.table.budget(c.speedup))
        options = self.ridges, self.folds(dense)
        return LevelsPlan(c, levels, choose, *options, problem.history)


def cost_of_levels(
    method: Method, model: "PreTrainedModel", tokens: int, search: Search, folds: float = 0.0
) -> dict[str, float | None]:
    """Return the tokens of the stages up to the choice of levels, as `Method.cost` does.

    `folds` are those of the folds, where there are any.
    """
    from pruning.models.sites import blocks

    searched = search.cost(method.sites(model), len(blocks(model)))
    stages = {"moments": float(tokens), "levels": 0.0} | ({"folds": folds} if folds else {})
    return stages | searched
