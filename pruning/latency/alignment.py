"""Which multiples this hardware runs well, as widths of an FFN: found by measuring."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel

from pruning.latency.measurement import Measurement
from pruning.latency.shapes import largest
from pruning.latency.timer import Rounds, Timing, interleaved
from pruning.models.shape import Experts, Heads, Width
from pruning.models.shrink import resized
from pruning.models.sites import Kind, Site, sites

log = logging.getLogger(__name__)

CANDIDATES = (8, 16, 32, 64, 128, 256)
GOOD = 0.03  # a width may take this share longer than at the best alignment


def aligned(model: PreTrainedModel, prunable: Sequence[Site], how: Measurement) -> int:
    """Return the finest alignment that costs nothing: no more than a coarser one.

    Of each candidate the width is timed, in a block without attention, that is a multiple of it and
    of nothing coarser, near three quarters of the FFN, or of every expert. `prunable` are the sites
    that it is for: the smallest part has eight levels at least.
    """
    parts = largest(sites(model))
    ffn = parts.get(Kind.FFN.value) or parts.get(Kind.EXPERTS.value)
    if ffn is None:
        return 1
    units = ffn.each[0].units
    others = [site for site in largest(prunable).values() if site.kind is not Kind.ATTENTION]
    least = min((site.each[0].units for site in others), default=units)
    at = {step: width(units, step) for step in CANDIDATES if 8 * step <= min(least, units)}
    if not at:
        return 1
    call = how.runtime.block(model, how.work)
    calls = {
        wide: call(resized(model, Heads(0, 0), of_width(ffn, wide), ffn.block), ffn.block)
        for wide in (*at.values(), units // 2, units)
    }
    timings = interleaved(calls, model.device, Rounds(how.repetitions), "profile: alignment")
    chosen = finest(at, timings, units)
    log.info("profile: FFN widths and ranks are multiples of %d", chosen)
    return chosen


def of_width(site: Site, width: int) -> Width | Experts:
    """Return the shape of an FFN, or of all experts, of this width."""
    return Experts(site.groups, width) if site.kind is Kind.EXPERTS else Width(width)


def width(units: int, step: int) -> int:
    """Return the largest odd multiple of a step that is at most three quarters of the units."""
    times = 3 * units // (4 * step)
    return step * (times if times % 2 else times - 1)


def finest(at: Mapping[int, int], timings: Mapping[int, Timing], units: int) -> int:
    """Return the first alignment that is as good as the best, as far as one can tell.

    `at` are the widths by alignment, from fine to coarse. Their times are compared with the line
    through those of the whole FFN and of half of it, whatever a block costs at any width.
    """
    ends = (units // 2, units)
    line = {
        width: np.interp(width, ends, [timings[end].p50 for end in ends]) for width in at.values()
    }
    off = {step: timings[width].p50 / line[width] for step, width in at.items()}
    doubt = {step: timings[width].stderr / line[width] for step, width in at.items()}
    best = min(off, key=off.__getitem__)
    return next(
        step
        for step in at
        if off[step] <= off[best] + GOOD + doubt[step] + doubt[best] or step == best
    )
