"""What is timed of a model whose blocks may differ: each part at every level that it has in one."""

from collections.abc import Iterable, Sequence

from pruning.latency.grid import Levels, experts, heads, widths
from pruning.models.shape import Experts, Shape
from pruning.models.sites import Kind, Site


def by_part(sites: Iterable[Site]) -> dict[str, list[Site]]:
    """Return the sites of each part, the first one of every shape."""
    parts: dict[str, dict[Shape, Site]] = {}
    for site in sites:
        parts.setdefault(site.part, {}).setdefault(site.whole, site)
    return {part: list(shapes.values()) for part, shapes in parts.items()}


def largest(prunable: Iterable[Site]) -> dict[str, Site]:
    """Return the site of each part that has the most units."""
    return {part: max(sites, key=lambda s: s.units) for part, sites in by_part(prunable).items()}


def levels(sites: Sequence[Site], alignment: int) -> dict[Shape, Site]:
    """Return every level of a part, the largest first and "gone" last, with a site that has it.

    `sites` are those of `by_part`. FFN widths and ranks are those of the largest site, and what the
    others have as they are; of heads all that any site contains, and of experts each site's own.
    """
    shapes: set[Shape]
    if sites[0].kind is Kind.ATTENTION:
        shapes = {h for s in sites for h in heads(s.groups, s.heads_per_group) if _timed(s, h)}
    elif sites[0].kind is Kind.EXPERTS:
        own = ((s.groups, s.heads_per_group, s.least) for s in sites)
        shapes = {left for sizes in own for left in experts(*sizes, alignment)}
    else:
        most = max(site.units for site in sites)
        shapes = {*widths(most, alignment), *(site.whole for site in sites)}
    return {
        level: next(site for site in sites if site.whole.contains(level))
        for level in sorted(shapes, key=lambda shape: shape.sizes, reverse=True)
    }


def timed_as(shapes: Iterable[Shape], tokens: int) -> dict[Shape, Shape]:
    """Return for every level, the largest first, the one that is timed for it: mostly itself.

    One token is routed to as many experts, however many there are: they take as long as most.
    """
    timed: dict[Shape, Shape] = {}
    for level in shapes:
        of_width = (s for s in timed if isinstance(s, Experts) and s.sizes[1] == level.sizes[-1])
        first = next(of_width, level) if isinstance(level, Experts) and tokens == 1 else level
        timed[level] = first
    return timed


def _timed(site: Site, left: Shape) -> bool:
    """Tell whether a shape is timed: "gone" is, also where the site itself has to stay."""
    return not left.units or site.allows(left)


def spent(parts: dict[str, Levels], sites: Iterable[Site]) -> float:
    """Return what all sites cost together as they are."""
    return sum(parts[site.part][site.whole] for site in sites)
