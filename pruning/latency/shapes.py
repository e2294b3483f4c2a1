"""What is timed of a model whose blocks may differ: each part at every level that it has in one."""

from collections.abc import Iterable, Sequence

from pruning.latency.grid import Levels, Shape, contains, heads, widths
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
    others have as they are; of heads all that any site contains.
    """
    wholes = [site.whole for site in sites]
    if sites[0].kind is Kind.ATTENTION:
        lattice = {level for site in sites for level in heads(site.groups, site.heads_per_group)}
        shapes: list[Shape] = sorted(lattice, reverse=True)
    else:
        most = max(site.units for site in sites)
        shapes = sorted({*widths(most, alignment), *wholes}, reverse=True)  # type: ignore[type-var]
    return {level: next(s for s in sites if contains(s.whole, level)) for level in shapes}


def spent(parts: dict[str, Levels], sites: Iterable[Site]) -> float:
    """Return what all sites cost together as they are."""
    return sum(parts[site.part][site.whole] for site in sites)
