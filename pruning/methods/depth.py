"""Depth pruning: whole blocks leave, those that change the residual stream least first."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.method import Method, Plan, PruningContext
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

    def cost(
        self, model: "PreTrainedModel", tokens: int, calibration: "Calibration", search: Search
    ) -> dict[str, float | None]:
        """Count the one pass that all blocks are judged by."""
        return {"influence": float(tokens), "prune": 0.0}

    def plan(self, context: PruningContext) -> Plan:
        """Order the blocks by their influence on the calibration text."""
        from pruning.methods.blocks import Blocks, influence, removable

        with context.job.stopwatch("calibrate"):
            scores = influence(context.dense, context.calibration.batches, context.job.cache)
        dense = context.dense.model
        order = sorted(removable(dense), key=lambda index: scores[index])
        return Blocks(dense, order, context.table)
