"""Compensated removal: the projection in front of what is gone takes over what that gave.

Nothing reads the stream between the two, so in the stream behind both the fold is exact.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.calibration.moment import Split
from pruning.calibration.passes import Reading, block_moments, outputs_of
from pruning.data.batch import Batch
from pruning.methods.method import PruningContext
from pruning.models.blockwise import State, advance, embed
from pruning.models.gaps import Gap, gaps, outputs_add_up
from pruning.models.sites import (
    Allocation,
    blocks,
    projection,
    replace_weight_,
    sites,
    weight,
)
from pruning.models.streamed import opened, rewritten
from pruning.solver.folds import best_fold, fold
from pruning.system.progress import track

PER_COLUMN = 5  # tokens that it reads for each column of the widest writer, if there are as many

Given = list[Float[Tensor, "tokens rows"]]  # by sub-blocks, of every state


@torch.no_grad()
def compensate_(
    context: PruningContext,
    ridges: Sequence[float],
    pruned: PreTrainedModel,
    allocation: Allocation,
) -> None:
    """Solve the projections in front of what is gone once more, behind the pruned blocks.

    Each aims at its own outputs and the sum of what the dense sub-blocks behind it gave. Its ridge
    is that of the least held-out error; of an infinite one the projection stays as it is. Of the
    calibration it reads evenly spread batches: more tokens than they have do not better it.
    """
    dense, options = context.dense.model, context.calibration.options
    every = gaps(dense, allocation) if outputs_add_up(dense) else []
    if not every:
        return
    fast = options.precision.is_bfloat16(dense.device)
    batches = spread(context.calibration.batches, max(gap.writer.columns for gap in every))
    originals = [embed(dense, batch, fast) for batch in batches]
    states = [embed(pruned, batch, fast) for batch in batches]
    key = ["compensated", {site.name: keep.tolist() for site, keep in allocation.items()}]
    ahead = behind = 0  # blocks that the dense states, and the pruned ones, have passed
    pairs: list[tuple[Gap, Given]] = [(gap, []) for gap in every]
    for gap, given in track(pairs, "compensate: gaps"):
        for index in range(behind, gap.writer.block):
            advance(states, index, blocks(pruned)[index])
        behind = gap.writer.block
        for index in range(ahead, gap.gone[-1].block + 1):
            _add_outputs(dense, index, originals, pairs)
        ahead = max(ahead, gap.gone[-1].block + 1)
        reading = Reading([gap.writer], options.weight, {gap.writer: given})
        with rewritten(pruned, pruned, behind, key):
            split = block_moments(pruned, behind, states, reading, advance=False)[gap.writer]
            assert isinstance(split, Split), "a writer is one projection"
            with context.job.stopwatch("solve"):
                _solve_(projection(pruned, gap.writer), split, ridges)
        given.clear()


def read_again(model: PreTrainedModel, tokens: int) -> float:
    """Count, about, the tokens that `compensate_` brings through both models together."""
    widest = max(site.columns for site in sites(model))
    return 2.0 * tokens / _step(tokens, widest)


def spread(batches: list[Batch], columns: int) -> list[Batch]:
    """Return every n-th batch to fit and every n-th held-out one, enough for so many columns."""
    n = _step(sum(batch.tokens for batch in batches), columns)
    parts = ([batch for batch in batches if batch.held_out is held] for held in (False, True))
    return [batch for part in parts for batch in part[::n]]


def _step(tokens: int, columns: int) -> int:
    return max(1, tokens // (PER_COLUMN * columns))


def _add_outputs(
    dense: PreTrainedModel, index: int, states: list[State], pairs: list[tuple[Gap, Given]]
) -> None:
    """Take the dense states behind a block; add what its sites gave to what gaps miss."""
    missing_of = {site: given for gap, given in pairs for site in gap.gone if site.block == index}
    with opened(blocks(dense)[index]) as block, outputs_of(dense, [*missing_of]) as given:
        for number, state in enumerate(states):
            home = state.advance(index, block).device
            for site, missing in missing_of.items():
                one = given[site].float().to(home)
                if number < len(missing):
                    missing[number] = missing[number] + one
                else:
                    missing.append(one)


def _solve_(module: nn.Module, split: Split, ridges: Sequence[float]) -> None:
    """Solve a projection from all tokens, in float64, once its ridge is chosen."""
    _, ridge, _ = best_fold(split, ridges)
    if math.isinf(ridge):
        return
    W = weight(module)
    F = fold(split.merged_(), ridge, torch.float64)
    replace_weight_(module, (W.double() + F).to(W.dtype))
