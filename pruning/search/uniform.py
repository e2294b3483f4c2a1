"""The uniform schedule."""

from collections.abc import Sequence

import numpy as np

from pruning.models.shape import Experts, Shape
from pruning.models.sites import Kind
from pruning.search.problem import Problem


def uniform(problem: Problem, budget: float) -> list[int] | None:
    """Return the widest schedule that cuts every FFN alike and fits `budget` ms.

    Where there are experts, all stay, and each has this width. Of two neighbouring levels the lower
    one is given to as few blocks as possible, evenly spread.
    """
    ffn = [i for i, site in enumerate(problem.sites) if site.kind in (Kind.FFN, Kind.EXPERTS)]
    if len({problem.sites[i].units for i in ffn}) != 1:
        widths = sorted({problem.sites[i].units for i in ffn})
        raise ValueError(
            "search=uniform gives all FFNs the same width, and those of this model have "
            f"{', '.join(map(str, widths)) or 'none'}: give another search, such as calibrated"
        )
    widths = {i: _widths(problem.shapes[i]) for i in ffn}
    for level in range(len(widths[ffn[0]])):
        for lower in range(len(ffn)):
            choice = [0] * len(problem.sites)
            # the number of lower levels up to block k is floor((k + 1) * lower / blocks)
            steps = np.diff(np.floor(np.arange(len(ffn) + 1) * lower / len(ffn))).astype(int)
            for i, step in zip(ffn, steps, strict=True):
                choice[i] = widths[i][min(level + int(step), len(widths[i]) - 1)]
            if problem.total(choice) <= budget:
                return choice
    return None


def _widths(shapes: Sequence[Shape]) -> list[int]:
    """Return the levels that narrow a site, and the one where it is gone."""
    whole = shapes[0]
    experts = whole.experts if isinstance(whole, Experts) else None
    return [
        level
        for level, shape in enumerate(shapes)
        if not (isinstance(shape, Experts) and shape.units and shape.experts != experts)
    ]
