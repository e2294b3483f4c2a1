"""Measure sub-blocks at every level, whole models beside them, and what both say together."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace

import torch
from transformers import PreTrainedModel

from pruning.latency import shapes
from pruning.latency.alignment import aligned
from pruning.latency.grid import Levels, monotone
from pruning.latency.measurement import Measurement
from pruning.latency.reference_models import reference_models, scales
from pruning.latency.shapes import by_part, largest, spent
from pruning.latency.table import LatencyTable, combine
from pruning.latency.timer import Rounds, Timing, interleaved
from pruning.models.modeling_pruned import factorise_
from pruning.models.shape import Experts, Heads, Shape, Width
from pruning.models.shrink import randomised_, resized
from pruning.models.sites import Kind, Site, blocks, projection, weight
from pruning.runtimes.runtime import Call, Runtime
from pruning.runtimes.workload import Phase, Workload
from pruning.system.environment import environment

log = logging.getLogger(__name__)

NATIVE = "dense, by code of its own"  # beside the dense model by the code of pruned ones
NOTHING = ""  # the part of a block that is left when both halves are gone
OFTEN = 5  # times that what is fast is timed in a round
IN_A_ROW = 8  # calls of a sub-block on a GPU that are timed as one
DOUBT = 0.005  # standard error at which no more rounds are needed, as a share of the whole part
NONE = Width(0)  # the level of what has none: a reference model, or a block without its halves
Name = tuple[str, Shape]  # a part of a block at a level, or a reference model by its name


def profile(model: PreTrainedModel, how: Measurement, sites: list[Site]) -> LatencyTable:
    """Time the parts of blocks at every level and a few whole models, all interleaved.

    `sites` are those of all blocks, which may differ. A sub-block is timed as a block whose other
    half is gone, less a block with neither; a projection by itself, at each rank as two. Alone, a
    part takes longer or shorter than within a model, by a factor that is much the same at all its
    levels: it is chosen such that the table explains whole models without attention, without FFNs,
    without both. What the dense model takes beyond its parts is the rest. Widths and ranks are
    multiples of `how.alignment`, or of what is found to run well. A phase that consists of
    others has the sum of their tables.

    ValueError where the times are known less well than `how.noise`.
    """
    work, runtime = how.work, how.runtime
    if not runtime.projections and any(site.kind is Kind.LINEAR for site in sites):
        raise ValueError(
            f"runtime={runtime.name} is for methods that cut blocks: a projection by itself costs "
            "more there than in its block; give runtime=torch, or another method"
        )
    steps = work.steps()
    alignment = how.alignment or max(aligned(model, sites, replace(how, work=s)) for _, s in steps)
    tables = [(n, _profile(model, replace(how, work=step), sites, alignment)) for n, step in steps]
    if work.phase is not Phase.generate:
        return tables[0][1]
    table = combine(tables, asdict(work) | {"runtime": runtime.label})
    call = {work.phase: runtime.end_to_end(model, work)}
    whole = interleaved(call, model.device, Rounds(how.repetitions), "profile: whole")[work.phase]
    table.rest += whole.p50 - table.dense
    table.dense = whole.p50
    return table


def _profile(
    model: PreTrainedModel, how: Measurement, sites: list[Site], alignment: int
) -> LatencyTable:
    work, runtime = how.work, how.runtime
    calls: dict[Name, Call] = {}
    whole = reference_models(model, sites, alignment)
    for reference in whole:
        calls[reference.name, NONE] = runtime.as_pruned(reference.model, work)
    if runtime.native:
        calls[NATIVE, NONE] = runtime.end_to_end(model, work)
    parts_alone, times = levels(model, sites, runtime, work, alignment), in_a_row(model.device)
    calls |= {name: repeated(call, times) for name, call in parts_alone.items()}
    strict = how.noise is not None
    rounds = Rounds(how.repetitions, known if strict else None, OFTEN, strict)
    timings = interleaved(calls, model.device, rounds, f"profile: {work.phase}")
    for name in parts_alone:
        timings[name] = Timing([value / times for value in timings[name].values])
    if how.noise is not None:
        _refuse_noise(timings, how.noise)
    ends = {reference.name: timings.pop((reference.name, NONE)) for reference in whole}
    native = timings.pop((NATIVE, NONE), ends[whole[0].name])

    parts: dict[str, Levels] = {}
    lowered: dict[str, float] = {}
    for site in largest(sites).values():
        ms = {level: t.p50 for (part, level), t in timings.items() if part == site.part}
        if site.kind is not Kind.LINEAR:
            empty = timings[NOTHING, NONE].p50
            alone = {level: (p50 - empty) / runtime.copies(model) for level, p50 in ms.items()}
            ms = monotone(alone)
            most = max(alone[level] - ms[level] for level in ms)
            lowered[site.part] = most / max(alone[site.whole], 1e-9)
            ms[site.gone] = 0.0
        if site.kind is Kind.EXPERTS:
            of_part = shapes.levels(by_part(sites)[site.part], alignment)
            ms = {a: ms[b] for a, b in shapes.timed_as(of_part, tokens_at_once(work)).items()}
        parts[site.part] = ms
    of_parts = scales(parts, whole, {name: t.p50 for name, t in ends.items()})
    parts = {p: {level: t * of_parts[p] for level, t in ms.items()} for p, ms in parts.items()}
    count, dense = len(blocks(model)), ends[whole[0].name].p50
    bottom = ends["neither"].p50 if "neither" in ends else 0.0
    parts = within(parts, sites, dense, bottom)
    table = LatencyTable(
        parts=parts,
        rest=dense - spent(parts, sites),
        blocks=count,
        spread=max(timing.spread for timing in timings.values()),
        dense=native.p50,
        setting=asdict(work)
        | {
            "runtime": runtime.label,
            "alignment": alignment,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
        },
        environment=environment(),
        scales=of_parts,
        lowered=lowered,
    )
    of_levels = {f"{part} {level}".strip(): t for (part, level), t in timings.items()}
    if runtime.native:
        of_levels[NATIVE] = native
    for name, timing in (of_levels | ends).items():
        table.raw[name], table.quantiles[name] = timing.values, timing.quantiles
    for reference in whole:
        table.anchors[reference.name] = [ends[reference.name].p50, table.total(reference.shapes)]
    off = ", ".join(f"{name} {share:+.1%}" for name, share in table.residuals().items())
    log.info("profile: whole models by the table, against what was measured: %s", off)
    return table


def in_a_row(device: torch.device) -> int:
    """Return how often a sub-block is called to be timed once.

    On a GPU the kernels of a call are launched while those before them run; a single call would
    mostly wait for its launches, which blocks of a whole model do not.
    """
    return IN_A_ROW if device.type == "cuda" else 1


def repeated(call: Call, times: int) -> Call:
    """Return a call that is `times` calls."""

    def calls() -> None:
        for _ in range(times):
            call()

    return call if times == 1 else calls


def within(
    parts: dict[str, Levels], prunable: Sequence[Site], dense: float, bottom: float
) -> dict[str, Levels]:
    """Shrink parts that noise made longer than the model that they are of.

    Then `bottom` ms, what the model takes without its blocks, are left beside them.
    """
    if not prunable or spent(parts, prunable) < dense:
        return parts
    scale = max(0.0, dense - bottom) / spent(parts, prunable)
    log.warning("profile: the parts take longer than the model: something disturbed the timing")
    return {part: {level: t * scale for level, t in ms.items()} for part, ms in parts.items()}


def tokens_at_once(work: Workload) -> int:
    """Return how many tokens go through a block in one call."""
    return work.batch * (1 if work.phase is Phase.decode else work.sequence)


def levels(
    model: PreTrainedModel,
    prunable: Sequence[Site],
    runtime: Runtime,
    work: Workload,
    alignment: int,
) -> dict[Name, Call]:
    """Return a call per part and level, and one for a block of which nothing is left."""
    call = runtime.block(model, work)

    def alone(site: Site, level: Width) -> Call:
        shrunk = deepcopy(blocks(model)[site.block])
        module = shrunk.get_submodule(site.module)
        tokens = 1 if work.phase is Phase.decode else work.sequence
        size = (work.batch, tokens, weight(module).shape[1])
        inputs = torch.randn(size).to(weight(module))
        if level != site.whole:
            module = factorise_(shrunk, site.module, level.units)
        randomised_(module)
        return lambda: module(inputs)

    calls: dict[Name, Call] = {(NOTHING, NONE): call(resized(model, Heads(0, 0), Width(0)))}
    for part, sites in by_part(prunable).items():
        of_part = shapes.levels(sites, alignment)
        timed = shapes.timed_as(of_part, tokens_at_once(work))
        for level, site in [*of_part.items()][:-1]:
            at = site.block
            if timed[level] != level:
                continue
            match level:
                case Heads():
                    calls[part, level] = call(resized(model, level, Width(0), at), at)
                case Experts():
                    calls[part, level] = call(resized(model, Heads(0, 0), level, at), at)
                case Width() if site.kind is Kind.FFN:
                    calls[part, level] = call(resized(model, Heads(0, 0), level, at), at)
                case Width():
                    calls[part, level] = alone(site, level)
    return calls


def doubts(timings: Mapping[Name, Timing]) -> dict[Name, float]:
    """Return each standard error as a share of the time of the part's first level, the dense one.

    What a search chooses by errs towards what was timed too short: of all levels it takes those.
    """
    whole: dict[str, float] = {}
    for (part, _), timing in timings.items():
        whole.setdefault(part, timing.p50)
    whole[NOTHING] = min(ms for part, ms in whole.items() if part != NOTHING)
    return {(part, level): t.stderr / whole[part] for (part, level), t in timings.items()}


def known(timings: Mapping[Name, Timing]) -> bool:
    """Say whether more rounds would tell nothing."""
    return max(doubts(timings).values()) < DOUBT


def _refuse_noise(timings: Mapping[Name, Timing], most: float) -> None:
    """Raise ValueError with the figure where levels cannot be told apart."""
    for (part, level), doubt in doubts(timings).items():
        if doubt > most:
            timing = timings[part, level]
            name = f"{part} {level}" if part else "a block without its parts"
            raise ValueError(
                f"hardware.noise={most}: the time of {name} is {timing.p50:.3g} ms, known to "
                f"{doubt:.0%} of the whole part (p90/p50 {timing.spread:.2f}), so that levels "
                "cannot be told apart: stop what else runs, raise hardware.repetitions, or give "
                "hardware.noise=null"
            )


def break_even(
    model: PreTrainedModel, sites: list[Site], table: LatencyTable
) -> dict[str, dict[str, int]]:
    """Say up to which rank two projections have fewer parameters than one, and are faster here."""
    ranks = {}
    for site in largest(sites).values():
        if site.kind is Kind.LINEAR:
            rows, columns = weight(projection(model, site)).shape
            faster = max((r.units for r in table.levels(site) if r != site.whole), default=0)
            smaller = (rows * columns - 1) // (rows + columns)
            ranks[site.module] = {"full": site.units, "smaller": smaller, "faster": faster}
    return ranks
