"""Compensated removal: the projection in front of what is gone takes over what that gave.

Nothing reads the stream between the two, so in the stream behind both the fold is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from pruning.calibration.moment import Moment, Split
from pruning.calibration.passes import Reading, block_moments, outputs
from pruning.methods.method import PruningContext
from pruning.models.blockwise import State, advance, embed
from pruning.models.modeling_pruned import block_shape
from pruning.models.sites import (
    Allocation,
    Kind,
    Site,
    architecture,
    blocks,
    projection,
    replace_weight_,
    sites,
    weight,
)
from pruning.models.streamed import opened, rewritten
from pruning.solver.obs import least_squares
from pruning.solver.ordering import HeldOut, choose_ridge
from pruning.system.progress import track

PASSES = 2.0  # that `compensate_` brings the text through the model, about


@dataclass
class _Gap:
    """Sub-blocks that are gone, one behind the other, and the last one before them that stays."""

    writer: Site
    gone: list[Site]
    missing: list[Float[Tensor, "tokens rows"]] = field(
        default_factory=list[Float[Tensor, "tokens rows"]]
    )  # the sum of what the dense ones gave, of every state


def compensates(model: PreTrainedModel) -> bool:
    """Tell whether outputs of sub-blocks add up in the stream, with no norm of their own."""
    a = architecture(model)
    return not (a.encoder or a.attention_output_norm or a.ffn_output_norm)


def _gaps(model: PreTrainedModel, allocation: Allocation) -> list[_Gap]:
    """List what is gone behind each site that stays, in the order of the stream."""
    a, gaps, gap = architecture(model), list[_Gap](), None
    at = {(site.block, site.kind): site for site in allocation}
    for index, block in enumerate(blocks(model)):
        groups, _, width, experts = block_shape(block, a)
        sizes = {Kind.ATTENTION: groups, Kind.EXPERTS if experts else Kind.FFN: width}
        here = [at.get((index, kind)) for kind, size in sizes.items() if size]
        if getattr(block, "use_parallel_residual", False):  # what stays of it comes first
            here.sort(key=lambda site: site is not None and not allocation[site].any())
        for site in here:
            if site is None:  # a product of two: it reads the stream, and stays as it is
                gap = None
            elif allocation[site].any() and site.kind is Kind.EXPERTS:
                gap = None  # many projections write at once, each what its own tokens ask for
            elif allocation[site].any():
                gap = _Gap(site, [])
                gaps.append(gap)
            elif gap:
                gap.gone.append(site)
    return [gap for gap in gaps if gap.gone]


@torch.no_grad()
def compensate_(
    context: PruningContext,
    ridges: Sequence[float],
    pruned: PreTrainedModel,
    allocation: Allocation,
) -> None:
    """Solve the projections in front of what is gone once more, behind the pruned blocks.

    Each aims at its own outputs and the sum of what the dense sub-blocks behind it gave. Its ridge
    is that of the least held-out error; of an infinite one the projection stays as it is.
    """
    dense, options = context.dense.model, context.calibration.options
    gaps = _gaps(dense, allocation) if compensates(dense) else []
    if not gaps:
        return
    fast = options.precision.is_bfloat16(dense.device)
    batches = context.calibration.batches
    originals = [embed(dense, batch, fast) for batch in batches]
    states = [embed(pruned, batch, fast) for batch in batches]
    key = ["compensated", {site.name: keep.tolist() for site, keep in allocation.items()}]
    ahead = behind = 0  # blocks that the dense states, and the pruned ones, have passed
    for gap in track(gaps, "compensate: gaps"):
        for index in range(behind, gap.writer.block):
            advance(states, index, blocks(pruned)[index])
        behind = gap.writer.block
        for index in range(ahead, gap.gone[-1].block + 1):
            _add_outputs(dense, index, originals, gaps)
        ahead = max(ahead, gap.gone[-1].block + 1)
        reading = Reading([gap.writer], options.weight, {gap.writer: gap.missing})
        with rewritten(pruned, pruned, behind, key):
            split = block_moments(pruned, behind, states, reading, advance=False)[gap.writer]
            assert isinstance(split, Split), "a writer is one projection"
            with context.job.stopwatch("solve"):
                _solve_(pruned, gap.writer, split, ridges)
        gap.missing.clear()


def _add_outputs(dense: PreTrainedModel, index: int, states: list[State], gaps: list[_Gap]) -> None:
    """Take the dense states behind a block; add what its sites gave to their gaps."""
    gap_of = {site: gap for gap in gaps for site in gap.gone if site.block == index}
    with opened(blocks(dense)[index]):
        for site, given in outputs(dense, index, states, [*gap_of]).items():
            module: Any = projection(dense, site)
            missing, bias = gap_of[site].missing, getattr(module, "bias", None)  # experts: none
            given = [one.float() if bias is None else one.float() + bias for one in given]
            if missing:
                given = [a + b for a, b in zip(missing, given, strict=True)]
            missing[:] = given


def _solve_(pruned: PreTrainedModel, writer: Site, split: Split, ridges: Sequence[float]) -> None:
    """Solve a projection from all tokens once its ridge is chosen."""
    module = projection(pruned, writer)
    (site,) = (s for s in sites(pruned) if (s.block, s.kind) == (writer.block, writer.kind))
    W = weight(module).to(split.fit.H.dtype)
    for moment in (split.fit, split.held):
        _add_own(moment, W)
    every = torch.ones(site.units, dtype=torch.bool)
    ridge = choose_ridge(HeldOut(site, W, split), [every], ridges)
    both, columns = split.all, every.repeat_interleave(site.width).to(W.device)
    assert both.target is not None
    V = least_squares(W.double(), both.H.double(), columns, ridge, both.target.double())
    replace_weight_(module, V)


def _add_own(moment: Moment, W: Float[Tensor, "rows columns"]) -> None:
    """Add what the projection itself gives to its targets."""
    assert moment.target is not None
    moment.target += W @ moment.H
