"""Whole blocks: how much each changes the residual stream, and a plan that removes them."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.data.batch import Batch
from pruning.latency.table import LatencyTable, Shapes
from pruning.methods.method import Plan
from pruning.models.blockwise import embed
from pruning.models.loaded import LoadedModel
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import Allocation, blocks, sites
from pruning.models.streamed import opened
from pruning.system.cache import Cache
from pruning.system.progress import track


class Blocks(Plan):
    """Blocks leave whole in a given order."""

    def __init__(
        self,
        dense: PreTrainedModel,
        order: list[int],
        table: LatencyTable,
        compensate_: Callable[[PreTrainedModel, Allocation], None] | None = None,
    ):
        self.dense, self.order, self.table = dense, order, table
        self.compensate_ = compensate_  # for what is gone; None: nothing stands in for it

    def choose(self, budget: float) -> Shapes | None:
        """Remove as few blocks as fit the budget."""
        for count in range(len(self.order) + 1):
            gone = self.order[:count]
            left = {s: s.gone if s.block in gone else s.whole for s in sites(self.dense)}
            if self.table.total(left) <= budget * (1 + 1e-9):
                return left
        return None

    def build(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Shrink a copy of the dense model, and compensate for what is gone."""
        pruned, allocation = self.timing_model(shapes)
        if self.compensate_:
            self.compensate_(pruned, allocation)
        return pruned, allocation

    def is_draft(self, shapes: Shapes) -> bool:
        """Tell whether something is gone that will be compensated for."""
        gone = any(not shape.units for shape in shapes.values())
        return gone and self.compensate_ is not None

    def timing_model(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Shrink a copy of the dense model."""
        allocation = {
            site: torch.full((site.units,), shape.units > 0) for site, shape in shapes.items()
        }
        return shrink_(copy_sharing_weights(self.dense), allocation), allocation


def removable(model: PreTrainedModel) -> list[int]:
    """List the blocks of which both sub-blocks may go."""
    kept = {site.block for site in sites(model) if not site.removable}
    return [index for index in range(len(blocks(model))) if index not in kept]


def influence(dense: LoadedModel, batches: list[Batch], cache: Cache) -> list[float]:
    """Return the Block Influence of every block, from one pass of the text; cached."""

    def build(directory: Path) -> None:
        (directory / "influence.json").write_text(json.dumps(_influence(dense.model, batches)))

    key = {
        "version": 1,
        "model": dense.fingerprint,
        "batches": [batch.digest() for batch in batches],
    }
    return json.loads((cache.stage("influence", key, build) / "influence.json").read_text())


@torch.no_grad()
def _influence(model: PreTrainedModel, batches: list[Batch]) -> list[float]:
    states = [embed(model, batch) for batch in batches]
    tokens = sum(batch.tokens for batch in batches)
    scores = []
    for index, block in enumerate(track(blocks(model), "calibrate: blocks")):
        total = 0.0
        with opened(block):
            for state in states:
                before, after = state.hidden, state.advance(index, block)
                alike = F.cosine_similarity(before.double(), after.double(), dim=-1)
                total += float(alike[state.batch.mask.bool().to(alike.device)].sum())
        scores.append(1 - total / tokens)
    return scores
