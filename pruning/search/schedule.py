"""Schedules: how much of every block goes, by its depth alone (SlimGPT, arXiv:2412.18110)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pruning.latency.table import Shapes
from pruning.models.shape import Experts, Heads, Shape, Width
from pruning.models.sites import Kind, Site
from pruning.search.options import Ramp

STEPS = 1000  # mean ratios that are tried for a budget


@dataclass(frozen=True)
class Form:
    """Ratios of the first and the last block, and what lies between; a budget scales them."""

    ramp: Ramp
    first: float
    last: float


def ratios(schedule: Form, blocks: int, mean: float) -> list[float]:
    """Return the pruning ratio of every block: the schedule's form, scaled to a mean.

        r_i proportional to first + (last - first) f(i),   i = 0 .. n-1
        f(i) = log(i + 1) / log(n)   (Eq. 6 of SlimGPT, with the model's own n),   or i / (n - 1)

    A decreasing ramp is the increasing one read backwards. What would be above 1 is 1, and the
    others give what is left.
    """
    if schedule.ramp is Ramp.uniform or blocks == 1:
        form = [1.0] * blocks
    else:
        if schedule.ramp in (Ramp.log, Ramp.log_decrease):
            f = [math.log(i + 1) / math.log(blocks) for i in range(blocks)]
        else:
            f = [i / (blocks - 1) for i in range(blocks)]
        form = [schedule.first + (schedule.last - schedule.first) * x for x in f]
        if schedule.ramp in (Ramp.log_decrease, Ramp.linear_decrease):
            form.reverse()
    largest = sorted(form, reverse=True)
    scale = 0.0
    for whole, most in enumerate(largest):  # so many blocks go whole
        if most == 0:  # the others have nothing to give
            break
        scale = (mean * blocks - whole) / sum(largest[whole:])
        if scale * most <= 1:
            break
    return [min(1.0, scale * x) for x in form]


def share(site: Site, shape: Shape) -> float:
    """Return the share of a sub-block's parameters that is left; biases and norms are not counted.

    A KV group has rows of k and v, and a query head rows of q and columns of o, of the same size.
    """
    match shape:
        case Heads():
            whole = site.groups * (site.heads_per_group + 1)
            return shape.groups * (shape.per_group + 1) / whole
        case Width() | Experts():
            return shape.units / site.units


def shapes(schedule: Form, options: Mapping[Site, Sequence[Shape]], mean: float) -> Shapes:
    """Return the shapes nearest the schedule of a mean ratio; no sub-block goes whole."""
    blocks = max(site.block for site in options) + 1
    at = ratios(schedule, blocks, mean)
    return {
        site: min(
            (shape for shape in levels if share(site, shape) > 0),
            key=lambda shape: abs(share(site, shape) - (1 - at[site.block])),
        )
        for site, levels in options.items()
    }


def chooser(
    schedule: Form,
    options: Mapping[Site, Sequence[Shape]],
    total: Callable[[Shapes], float],
) -> Callable[[float], Shapes | None]:
    """Scale the schedule until the predicted milliseconds of its shapes meet a budget."""

    def choose(budget: float) -> Shapes | None:
        for step in range(STEPS + 1):
            left = shapes(schedule, options, step / STEPS)
            if total(left) <= budget * (1 + 1e-9):
                return left
        return None

    return choose


def every_shape(site: Site, alignment: int) -> list[Shape]:
    """List the shapes that a site can have, dense first; gone is not among them.

    Widths below the dense one are multiples of `alignment`: others may be slower than that, on a
    GPU several times slower.
    """
    if site.kind is Kind.FFN:
        last = (site.units - 1) // alignment
        return [Width(site.units), *(Width(n * alignment) for n in range(last, 0, -1))]
    groups, heads = range(site.groups, 0, -1), range(site.heads_per_group, 0, -1)
    return [Heads(g, h) for g in groups for h in heads]
