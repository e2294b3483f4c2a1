"""Which levels of a part are timed, and what their times have to do with each other."""

from math import lcm

from pruning.models.modeling_pruned import EXPERT_MULTIPLE
from pruning.models.shape import Experts, Heads, Shape, Width

Levels = dict[Shape, float]  # the cost of each level, dense first


def widths(units: int, alignment: int) -> list[Width]:
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
    return [Width(width) for width in (*grid, 0)]


def heads(groups: int, per_group: int) -> list[Heads]:
    """Return all heads that can be left, dense first and none last."""
    lattice = [Heads(g, h) for g in range(groups, 0, -1) for h in range(per_group, 0, -1)]
    return [*lattice, Heads(0, 0)]


def experts(count: int, width: int, least: int, alignment: int) -> list[Experts]:
    """Return numbers of experts in eighths of all, `least` at least, and widths in eighths.

    Dense first and none last. Widths are multiples of the alignment, and of what products of
    several experts at once need.
    """
    step = lcm(alignment, EXPERT_MULTIPLE)
    counts = sorted({max(least, round(count * n / 8)) for n in range(1, 9)}, reverse=True)
    rounded = {round(width * n / 8 / step) * step for n in range(1, 8)}
    sizes = [width, *sorted((w for w in rounded if 0 < w < width), reverse=True)]
    return [*(Experts(n, w) for n in counts for w in sizes), Experts(0, 0)]


def monotone(ms: Levels) -> Levels:
    """Let no level cost more than one that contains it: a larger level could serve instead."""
    return {
        level: max(0.0, min(cost for other, cost in ms.items() if other.contains(level)))
        for level in ms
    }


def offered(ms: Levels) -> list[Shape]:
    """Return the levels that are faster than all that contain them, dense first; and "gone"."""
    return [
        level
        for level, cost in ms.items()
        if not level.units
        or all(cost < own for other, own in ms.items() if other != level and other.contains(level))
    ]
