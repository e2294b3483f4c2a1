"""Depth pruning: whole blocks leave, those that change the residual stream least first."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.method import Method, Plan, PruningContext, default_ridges
from pruning.search.search import NoSearch, Search

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.calibration.calibration import Calibration


@dataclass
class Depth(Method):
    """Block Influence of ShortGPT: 1 - E[cos(stream in front of a block, stream behind it)]."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.03853"
    search_type: ClassVar[type[NoSearch]] = NoSearch

    name: str = "depth"
    compensate: bool = True  # the projection in front of what is gone takes over what that gave

    def cost(
        self, model: "PreTrainedModel", tokens: int, calibration: "Calibration", search: Search
    ) -> dict[str, float | None]:
        """Count the pass that all blocks are judged by, and those that compensate for them."""
        from pruning.methods.compensation import read_again
        from pruning.models.gaps import outputs_add_up

        again = self.compensate and outputs_add_up(model)
        return {"influence": float(tokens), "prune": read_again(model, tokens) if again else 0.0}

    def plan(self, context: PruningContext) -> Plan:
        """Order the blocks by their influence on the calibration text."""
        from pruning.methods.blocks import Blocks, influence, removable
        from pruning.methods.compensation import compensate_

        with context.job.stopwatch("calibrate"):
            scores = influence(context.dense, context.calibration.batches, context.job.cache)
        dense = context.dense.model
        order = sorted(removable(dense), key=lambda index: scores[index])
        fold = partial(compensate_, context, default_ridges()) if self.compensate else None
        return Blocks(dense, order, context.table, fold)
