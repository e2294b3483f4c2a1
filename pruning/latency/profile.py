"""Measure sub-blocks at every level, and models end to end."""

import logging
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.calibration.batch import Batch
from pruning.calibration.stream import behind, bypassed, enter
from pruning.latency.clock import Timing, interleaved, speedup
from pruning.latency.hardware import Hardware
from pruning.latency.table import LatencyTable, Shape
from pruning.models.modeling_pruned import factorise_, resize_block_
from pruning.models.sites import Kind, Site, architecture, blocks, projection, weight

log = logging.getLogger(__name__)

Call = Callable[[], object]
MODEL, SHELL = "the dense model", "the dense model without blocks"  # timed beside the parts
NOTHING = ""  # the part of a block that is left when both halves are gone
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
    """Return a call that reads a prompt and gives the logits of its last token, or of its task."""
    batch = _tokens(model, hardware)
    ids = batch.ids.to(model.device)
    if architecture(model).encoder:
        return lambda: model(input_ids=ids)
    return lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1)


def _warn_if_noisy(what: str, timing: Timing) -> None:
    if timing.spread > NOISY:
        log.warning(
            "%s: p90/p50 is %.2f; other work on this machine disturbs the measurement",
            what,
            timing.spread,
        )


def profile(model: PreTrainedModel, hardware: Hardware, of: list[Site]) -> LatencyTable:
    """Time the parts of one block at every level, alone, and the dense model, all interleaved.

    `of` are the sites of a block. A sub-block is timed as a block whose other half is gone, norm
    and residual included; what a block with both halves gone takes is subtracted and counts to the
    rest. A projection is timed by itself, at each rank as two. The rest is at least what the model
    takes without its blocks: parts that take longer alone than in the model are scaled to fit.
    """
    state = enter(model, _tokens(model, hardware))
    whole = _prefill(model, hardware)

    def shell() -> object:
        with bypassed(model):
            return whole()

    def block(groups: int, per_group: int, width: int) -> Call:
        shrunk = deepcopy(blocks(model)[0])
        resize_block_(shrunk, architecture(model), groups, per_group, width)
        _randomise_(shrunk)
        return lambda: behind(shrunk, state.hidden, state.calls[0])

    def projections(site: Site, rank: int) -> Call:
        shrunk = deepcopy(blocks(model)[0])
        module = shrunk.get_submodule(site.module)
        inputs = torch.randn(*state.hidden.shape[:2], weight(module).shape[1]).to(state.hidden)
        if rank < site.units:
            module = factorise_(shrunk, site.module, rank)
        _randomise_(module)
        return lambda: module(inputs)

    calls: dict[tuple[str, Shape], Call] = {
        (MODEL, 0): whole,
        (SHELL, 0): shell,
        (NOTHING, 0): block(0, 0, 0),
    }
    for site in of:
        if site.kind is Kind.ATTENTION:
            for level in heads(site.groups, site.heads_per_group)[:-1]:
                calls[site.part, level] = block(*level, 0)
        for width in widths(site.units, hardware.alignment)[:-1]:
            if site.kind is Kind.FFN:
                calls[site.part, width] = block(0, 0, width)
            elif site.kind is Kind.LINEAR:
                calls[site.part, width] = projections(site, width)
    timings = interleaved(calls, model.device, hardware.repetitions, "profile")
    dense, least = timings.pop((MODEL, 0)), timings.pop((SHELL, 0)).p50
    _warn_if_noisy("profile of the dense model", dense)
    worst = max(timings.values(), key=lambda timing: timing.spread)
    _warn_if_noisy("profile of the levels", worst)

    parts: dict[str, dict[Shape, float]] = {}
    for site in of:
        ms = {level: t.p50 for (part, level), t in timings.items() if part == site.part}
        if site.kind is not Kind.LINEAR:
            empty = timings[NOTHING, 0].p50
            ms = _monotone({level: p50 - empty for level, p50 in ms.items()})
            ms[(0, 0) if site.kind is Kind.ATTENTION else 0] = 0.0
        parts[site.part] = ms
    count = len(blocks(model))
    prunable = count * sum(next(iter(ms.values())) for ms in parts.values())
    most = max(0.0, dense.p50 - least)
    fit = 1.0
    if prunable > most:
        fit = most / prunable
        log.warning(
            "the parts take %.1f ms alone and at most %.1f ms within the model: scaled to fit",
            prunable,
            most,
        )
    return LatencyTable(
        parts={part: {level: t * fit for level, t in ms.items()} for part, ms in parts.items()},
        rest=dense.p50 - prunable * fit,
        blocks=count,
        spread=worst.spread,
        dense=dense.p50,
    )


def break_even(
    model: PreTrainedModel, of: list[Site], table: LatencyTable
) -> dict[str, dict[str, int]]:
    """Say up to which rank two projections have fewer parameters than one, and are faster here."""
    found = {}
    for site in of:
        if site.kind is Kind.LINEAR:
            rows, columns = weight(projection(model, site)).shape
            faster = max((r for r in table.levels(site) if r != site.units), default=0)
            smaller = (rows * columns - 1) // (rows + columns)
            found[site.module] = {"full": site.units, "smaller": smaller, "faster": faster}
    return found


def _randomise_(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)


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
