"""Pruning block by block: the pruned blocks give the inputs that the next one is pruned on."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from pruning.calibration.calibration import Calibration, Target
from pruning.calibration.moment import Split, packed_away
from pruning.calibration.passes import Reading, block_moments, outputs
from pruning.methods.method import PruningContext
from pruning.models.blockwise import advance, embed
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import (
    Allocation,
    Site,
    blocks,
    projection,
    set_weight_,
    sites,
    weight,
)
from pruning.models.streamed import is_streamed, rewritten, written_before
from pruning.solver.obs import least_squares
from pruning.solver.ordering import HeldOut, Update, check_finite, choose_update
from pruning.system.progress import track

log = logging.getLogger(__name__)

Keep = Bool[Tensor, " units"]


def passes(calibration: Calibration) -> float:
    """Return how often `sequential` brings the text through the model."""
    return 3.0 + (calibration.target is not Target.local)


def updates_behind(calibration: Calibration, ridges: Sequence[float]) -> bool:
    """Say whether weights of levels are solved once more, behind the pruned blocks."""
    return calibration.target is not Target.local and min(ridges) < math.inf


@torch.no_grad()
def sequential(
    context: PruningContext,
    ridges: Sequence[float],
    decide: Callable[[Site, Float[Tensor, "rows columns"], Float[Tensor, "columns columns"]], Keep],
    identity: Any,
) -> tuple[PreTrainedModel, Allocation, list[dict[str, Any]]]:
    """Prune block after block: attention, then the FFN behind it, then on to the next block.

    `decide` says what a site keeps, from its dense weight and E[x x^T] in the pruned stream;
    the kept weights are then solved from these, with the ridge of the least held-out error; with
    `calibration.target=damped` also the share of the dense outputs. Both are returned, by site.
    `identity` stands for the decisions: by it a streamed model's blocks are known that an earlier
    start has pruned.

    Three passes of the calibration text through every block, one block's moments in memory; but
    for `calibration.target=local` also one pass through the dense block, and its outputs at two
    sites.
    """
    dense, batches = context.dense.model, context.calibration.batches
    calibration = context.calibration.options
    pruned, allocation = copy_sharing_weights(dense), Allocation()
    shares, updates = calibration.target.shares, list[dict[str, Any]]()
    fast = calibration.precision.is_bfloat16(dense.device)
    states = [embed(pruned, batch, fast) for batch in batches]
    of_dense = [] if calibration.target is Target.local else batches
    originals = [embed(dense, batch, fast) for batch in of_dense]
    key = _key(context, fast, ridges, identity) if is_streamed(dense) else None
    for index in track(range(len(blocks(pruned))), "prune: blocks"):
        of_block = [site for site in sites(dense) if site.block == index]
        if (before := written_before(dense, pruned, index, key)) is not None:
            keeps = {site: before[site.name] for site in of_block}
            shrink_(pruned, keeps)
            allocation |= keeps
            updates += _updates(of_block, before)
            advance(originals, index, blocks(dense)[index])
            advance(states, index, blocks(pruned)[index])
            continue
        with rewritten(dense, pruned, index, key) as beside:
            targets = outputs(dense, index, originals, of_block) if originals else None
            for site in of_block:
                reading = Reading([site], calibration.weight, targets)
                split = block_moments(pruned, index, states, reading, advance=False)[site]
                assert isinstance(split, Split), "experts are refused before"
                with context.job.stopwatch("solve"):
                    W = weight(projection(dense, site))
                    check_finite(site, W, split)
                    W, H = W.to(split.fit.H.dtype), split.all.H
                    with packed_away(split):
                        allocation[site] = beside[site.name] = keep = decide(site, W, H)
                    del H
                    partly = keep.any() and not keep.all()  # else it is the dense one, or gone
                    W_K = None
                    if partly:
                        update = choose_update(HeldOut(site, W, split), keep, ridges, shares)
                        beside[_of_update(site)] = update.tensor
                        W_K = _solved(site, W, split, keep, update)
                del split, W  # the next site's take their place
                shrink_(pruned, {site: keep})
                if W_K is not None:
                    set_weight_(projection(pruned, site), W_K)
        updates += _updates(of_block, beside)
        advance(states, index, blocks(pruned)[index])
    if len(shares) > 1:
        counts = Counter(update["share"] for update in updates)
        said = ", ".join(f"{share:g} at {counts[share]} sites" for share in shares)
        log.info("share of the dense outputs in the target: %s", said)
    return pruned, allocation, updates


def _key(context: PruningContext, fast: bool, ridges: Sequence[float], identity: Any) -> list[Any]:
    """Return all that decides what becomes of the blocks."""
    calibration, batches = context.calibration.options, context.calibration.batches
    passes = calibration.weight, fast, [batch.digest() for batch in batches]
    return [context.dense.fingerprint, *passes, calibration.target.shares, [*ridges], identity]


def _of_update(site: Site) -> str:
    """Return what the update of a site is called beside the weights of its block."""
    return f"{site.name}.update"


def _updates(of_block: list[Site], beside: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Return how the weights of a block were solved, by site."""
    return [
        {"site": site.name, **asdict(Update.from_tensor(beside[_of_update(site)]))}
        for site in of_block
        if _of_update(site) in beside
    ]


def _solved(
    site: Site, W: Tensor, split: Split, keep: Keep, update: Update
) -> Float[Tensor, "rows kept"]:
    """Return the kept weights, solved from all tokens; the split is used up."""
    columns, both = keep.repeat_interleave(site.width).to(W.device), split.merged_()
    target = None if both.target is None else both.target.double()
    given = W.double(), both.H, columns, update.ridge, target, update.share
    return least_squares(*given).to(W.dtype)
