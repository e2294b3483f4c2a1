"""Which multiples this hardware runs well, as widths of an FFN: found by measuring."""

import logging
from collections.abc import Mapping

from transformers import PreTrainedModel

from pruning.latency.clock import Timing, interleaved
from pruning.latency.phases import of_block, resized
from pruning.latency.workload import Workload
from pruning.models.sites import sites

log = logging.getLogger(__name__)

CANDIDATES = (8, 16, 32, 64, 128, 256)
GOOD = 0.03  # a channel may take this share longer than at the best alignment


def aligned(model: PreTrainedModel, work: Workload, repetitions: int) -> int:
    """Return the finest alignment at which a channel takes no longer than at a coarser one.

    Of each candidate the width is timed, in a block without attention, that is a multiple of it and
    of nothing coarser, near three quarters of the FFN.
    """
    call, units = of_block(model, work), sites(model)[1].units
    at = {step: width(units, step) for step in CANDIDATES if 8 * step <= units}
    if not at:
        return 1
    calls = {of: call(resized(model, 0, 0, of)) for of in (0, *at.values())}
    timings = interleaved(calls, model.device, repetitions, "profile: alignment")
    chosen = finest(at, timings)
    log.info("profile: FFN widths and ranks are multiples of %d", chosen)
    return chosen


def width(units: int, step: int) -> int:
    """Return the largest odd multiple of a step that is at most three quarters of the units."""
    times = 3 * units // (4 * step)
    return step * (times if times % 2 else times - 1)


def finest(at: Mapping[int, int], timings: Mapping[int, Timing]) -> int:
    """Return the first alignment that is as good as the best, as far as one can tell.

    `at` are the widths by alignment, from fine to coarse; of width 0 is the block without an FFN.
    """
    empty = timings[0].p50
    ms = {step: (timings[of].p50 - empty) / of for step, of in at.items()}
    doubt = {step: timings[of].stderr / of for step, of in at.items()}
    best = min(ms, key=ms.__getitem__)
    return next(
        step
        for step in at
        if ms[step] <= (1 + GOOD) * ms[best] + doubt[step] + doubt[best] or step == best
    )
