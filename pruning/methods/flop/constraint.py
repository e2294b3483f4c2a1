"""What FLOP holds training to: a cost of the expected ranks, by an augmented Lagrangian."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pruning.latency.table import LatencyTable
from pruning.models.shape import Shape, Width
from pruning.models.sites import Site


@dataclass
class Cost:
    """The cost of a factorised site, linear in the rank between `ranks`, and of the dense whole.

    No site costs more than the dense one: at such ranks it is merged into one matrix again.
    """

    ranks: dict[Site, Float[Tensor, " points"]]  # ascending, from 0
    costs: dict[Site, Float[Tensor, " points"]]  # not falling
    dense: dict[Site, float]
    rest: float  # what no rank changes
    whole: float  # of the dense model

    @classmethod
    def from_table(cls, table: LatencyTable, sites: list[Site]) -> "Cost":
        """Take what a table says of factorised projections at every rank."""
        ranks, costs = {}, {}
        for site in sites:
            levels = table.parts[site.part]
            points = sorted((r.units, cost) for r, cost in levels.items() if r != site.whole)
            points = points or [(site.units, levels[site.whole])]  # too small to have ranks
            x, y = (torch.tensor([0.0, *column]) for column in zip(*points, strict=True))
            ranks[site], costs[site] = x, y.cummax(0).values
        dense = {site: table.ms(site, site.whole) for site in sites}
        return cls(ranks, costs, dense, table.rest, table.dense)

    @property
    def sites(self) -> list[Site]:
        """List where ranks are learned."""
        return list(self.dense)

    def saved(self, ranks: Mapping[Site, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """Return the share of the whole that these ranks save; differentiable in them."""
        spent = [self._of(site, rank) for site, rank in ranks.items()]
        return 1 - (self.rest + torch.stack(spent).sum()) / self.whole

    def _of(self, site: Site, rank: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Interpolate; beyond the last point go on at its slope, up to the dense cost."""
        x, y = (points[site].to(rank) for points in (self.ranks, self.costs))
        right = int(torch.searchsorted(x, rank.detach()).clamp(1, len(x) - 1))
        slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
        return (y[right] + slope * (rank - x[right])).clamp(max=self.dense[site])


def counts(sizes: Mapping[Site, tuple[int, int]], table: LatencyTable) -> LatencyTable:
    """Return a table of parameters in the place of milliseconds, at the same ranks.

    `sizes` are rows and columns: a product has rows + columns per rank, a matrix rows x columns.
    What the table does not know has one rank, half of the largest: more make no difference.
    """
    parts: dict[str, dict[Shape, float]] = {}
    for site, (rows, columns) in sizes.items():
        known = table.parts.get(site.part, [Width((site.units + 1) // 2)])
        ranks = [rank for rank in known if rank != site.whole]
        parts[site.part] = {site.whole: float(rows * columns)}
        parts[site.part] |= {rank: float(rank.units * (rows + columns)) for rank in ranks}
    whole = float(sum(rows * columns for rows, columns in sizes.values()))
    return LatencyTable(parts, 0.0, table.blocks, 1.0, whole)


class Lagrangian(nn.Module):
    """l1 (s - t) + l2 (s - t)^2, lowered by the model and raised by the multipliers."""

    def __init__(self, penalty: float) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.tensor(penalty))  # 0 as published

    def forward(self, saved: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
        """Return the penalty for saving `saved` where `target` is asked for."""
        return self.linear * (saved - target) + self.quadratic * (saved - target).square()
