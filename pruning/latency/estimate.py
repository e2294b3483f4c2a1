"""How long a latency table takes to measure, roughly: from one block, loaded and run here."""

import time
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from pruning.latency import shapes
from pruning.latency.measurement import Measurement
from pruning.latency.profile import OFTEN
from pruning.latency.reference_models import reference_models
from pruning.latency.shapes import by_part
from pruning.latency.timer import milliseconds
from pruning.models.sites import Site, blocks
from pruning.runtimes.workload import Phase

ALIGNMENT = 32  # taken for one that is yet to be measured


def profile_seconds(model: PreTrainedModel, how: Measurement, sites: list[Site]) -> float:
    """Return about how many seconds `profile` takes.

    A level takes as long to load as a whole block; on average it runs for half the time of its
    part, and so do the whole models beside them for half the time of the dense one.
    """
    parts, alignment = by_part(sites), how.alignment or ALIGNMENT
    levels = 1 + sum(len(shapes.levels(part, alignment)) - 1 for part in parts.values())
    models = len(reference_models(model, sites, alignment))
    depth = len(blocks(model)) / how.runtime.copies(model)
    at = max(sites, key=lambda site: site.units).block if sites else 0
    seconds = 0.0
    for times, step in how.work.steps():
        load, run = one_block(model, replace(how, work=step), at)
        level, whole = run / (2 * max(1, len(parts))), depth * run / 2
        mean = (levels * level + models * whole) / (levels + models)
        often = max(1.0, min(OFTEN, mean / level))
        # a round to warm up and one to see what comes often
        rounds = (how.repetitions + 2) * (levels * level * often + models * whole)
        seconds += (levels + models * depth / 2) * load + rounds
        if how.work.phase is Phase.generate:
            seconds += (how.repetitions + 1) * times * depth * run
    return seconds


@torch.no_grad()
def one_block(model: PreTrainedModel, how: Measurement, index: int) -> tuple[float, float]:
    """Return the seconds that a block takes until it has run once, and those of a call.

    It is loaded twice: the first time an engine imports what it needs.
    """
    make, loads = how.runtime.block(model, how.work), list[float]()
    for _ in range(2):
        start = time.perf_counter()
        call = make(blocks(model)[index], index)
        milliseconds(call, model.device)
        loads.append(time.perf_counter() - start)
    return min(loads), min(milliseconds(call, model.device) for _ in range(3)) / 1000
