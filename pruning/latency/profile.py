"""Measure sub-blocks at every level, and models end to end."""

import logging
from copy import deepcopy

import numpy as np
import torch
from transformers import PreTrainedModel

from pruning.calibration.stream import Batch, behind, enter
from pruning.latency.clock import Timing, interleaved, speedup
from pruning.latency.hardware import Hardware
from pruning.latency.table import LatencyTable, Shape
from pruning.models.modeling_pruned import resize_block_
from pruning.models.sites import Kind, architecture, blocks, sites

log = logging.getLogger(__name__)

NOISY = 1.2  # p90/p50 beyond which a timing deserves a warning


def widths(units: int, alignment: int) -> list[int]:
    """Return FFN widths from `units` down the 0.9^i grid of ZipLM, each a multiple of alignment.

    The grid ends at 1 % of the width; 0, the sub-block gone, is always last.
    """
    grid = [units]
    density = 0.9
    while density > 0.01:
        width = round(density * units / alignment) * alignment
        if 0 < width < grid[-1]:
            grid.append(width)
        density *= 0.9
    return [*grid, 0]


def heads(groups: int, per_group: int) -> list[tuple[int, int]]:
    """Return every (KV groups, query heads per group), dense first and (0, 0) last."""
    lattice = [(g, h) for g in range(groups, 0, -1) for h in range(per_group, 0, -1)]
    return [*lattice, (0, 0)]


def _tokens(model: PreTrainedModel, hardware: Hardware) -> Batch:
    generator = torch.Generator().manual_seed(0)
    size = (hardware.batch, hardware.sequence)
    ids = torch.randint(model.config.vocab_size, size, generator=generator)
    return Batch(ids, torch.ones_like(ids))


def _prefill(model: PreTrainedModel, hardware: Hardware):
    """Return a call that reads a prompt and gives the logits of its last token."""
    batch = _tokens(model, hardware)
    ids = batch.ids.to(model.device)
    return lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1)


def _warn_if_noisy(what: str, timing: Timing) -> None:
    if timing.spread > NOISY:
        log.warning(
            "%s: p90/p50 is %.2f; other work on this machine disturbs the measurement",
            what,
            timing.spread,
        )


def profile(model: PreTrainedModel, hardware: Hardware) -> LatencyTable:
    """Time one block's sub-blocks at every level, alone and interleaved, and the dense model.

    A sub-block is timed as a block whose other half is gone, norm and residual included; what a
    block with both halves gone takes is subtracted and counts to the rest.
    """
    attention, ffn = sites(model)[:2]
    state = enter(model, _tokens(model, hardware))
    grid: dict[tuple[Kind | None, Shape], tuple[tuple[int, int], int]] = {(None, 0): ((0, 0), 0)}
    for level in heads(attention.groups, attention.units // attention.groups)[:-1]:
        grid[Kind.ATTENTION, level] = (level, 0)
    for width in widths(ffn.units, hardware.alignment)[:-1]:
        grid[Kind.FFN, width] = ((0, 0), width)
    calls = {}
    for key, (level, width) in grid.items():
        block = deepcopy(blocks(model)[0])
        resize_block_(block, architecture(model), *level, width)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        calls[key] = lambda block=block: behind(block, state.hidden, state.calls[0])
    timings = interleaved(calls, model.device, hardware.repetitions, "profile: levels")
    whole = interleaved(
        {"dense": _prefill(model, hardware)}, model.device, hardware.repetitions, "profile: model"
    )["dense"]
    _warn_if_noisy("profile of the dense model", whole)
    worst = max(timings.values(), key=lambda timing: timing.spread)
    _warn_if_noisy("profile of the levels", worst)

    empty = timings[None, 0].p50
    of_attention = _monotone(
        {k[1]: t.p50 - empty for k, t in timings.items() if k[0] is Kind.ATTENTION}
    )
    of_ffn = _monotone({k[1]: t.p50 - empty for k, t in timings.items() if k[0] is Kind.FFN})
    of_attention[0, 0] = of_ffn[0] = 0.0
    count = len(blocks(model))
    dense_level = next(iter(of_attention)), next(iter(of_ffn))
    prunable = count * (of_attention[dense_level[0]] + of_ffn[dense_level[1]])
    if prunable > whole.p50:
        log.warning(
            "the sub-blocks alone (%.1f ms) take longer than the model (%.1f ms): scaled to fit",
            prunable,
            whole.p50,
        )
    fit = min(1.0, whole.p50 / prunable)
    return LatencyTable(
        attention={level: ms * fit for level, ms in of_attention.items()},
        ffn={level: ms * fit for level, ms in of_ffn.items()},
        rest=max(0.0, whole.p50 - prunable),
        blocks=count,
        spread=worst.spread,
        dense=whole.p50,
    )


def _monotone(ms: dict) -> dict:
    """Let no level cost more than one that contains it: a larger level could serve instead."""

    def contains(larger, smaller) -> bool:
        return all(np.atleast_1d(larger) >= np.atleast_1d(smaller))

    return {
        level: max(0.0, min(cost for other, cost in ms.items() if contains(other, level)))
        for level in ms
    }


def compare(
    dense: PreTrainedModel, pruned: PreTrainedModel, hardware: Hardware
) -> tuple[Timing, Timing]:
    """Time both models end to end in turns until the ratio is known to half the tolerance."""

    def enough(found: dict[str, Timing]) -> bool:
        middle, doubt = speedup(found["dense"], found["pruned"])
        return doubt < hardware.tolerance / 2 * middle

    calls = {"dense": _prefill(dense, hardware), "pruned": _prefill(pruned, hardware)}
    found = interleaved(calls, dense.device, hardware.repetitions, "measure: end to end", enough)
    for name, timing in found.items():
        _warn_if_noisy(f"end-to-end time of the {name} model", timing)
    return found["dense"], found["pruned"]
