"""The multiple-choice knapsack under structured SPDY (ZipLM, arXiv:2302.04089, section 3.3)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

Row = Float[np.ndarray, " _"]  # one value per level
Grid = Float[np.ndarray, "sites levels"]  # rows filled up with infinity
Places = Int[np.ndarray, " sites"]

FEWEST = 10_000  # buckets of the budget
PER_SITE = 2_000  # buckets: rounding up takes less than 1 / PER_SITE of the budget
WORK = 500_000_000  # steps of one solution at most, where more than FEWEST buckets are worth it
SLACK = 1e-9  # of a budget, for sums that differ in rounding
ROUNDING = 1e-6  # of a bucket


def knapsack(
    loss: Sequence[Row], ms: Sequence[Row], budget: float, buckets: int | None = None
) -> list[int] | None:
    """Choose one level per site with the least summed loss whose summed ms is at most `budget`.

    Exact on times rounded *up* to budget / buckets, so that no choice exceeds the budget: by
    dynamic programming over sites, D[b] = min over levels s of D_before[b - t_s] + loss_s. Levels
    that cannot be part of the best choice are left out before; by default, buckets grow with the
    sites that are then undecided. Levels whose loss or time is not finite are never chosen. Returns
    None when even the fastest levels do not fit. Ties go to the earlier level.
    """
    costs, times = _grid(loss), _grid(ms)
    usable = np.isfinite(costs) & np.isfinite(times)
    fastest = np.where(usable, times, np.inf).min(1)
    if budget <= 0 or not fastest.sum() <= budget * (1 + SLACK):
        return None
    costs, times = np.where(usable, costs, np.inf), np.where(usable, times, 0.0)
    known, possible = _bounded(costs, times, budget)
    open_ = possible.sum(1) > 1
    choice = possible.argmax(1)
    left = budget - times[~open_, choice[~open_]].sum()
    width = budget / (buckets or _buckets(possible[open_]))
    levels = _exact(costs[open_], times[open_], possible[open_], left, width)
    if levels is None:
        return known.tolist()
    choice[open_] = levels
    at = np.arange(len(choice))
    return (known if costs[at, known].sum() < costs[at, choice].sum() else choice).tolist()


def _grid(rows: Sequence[Row]) -> Grid:
    """Put rows of any lengths under each other."""
    grid = np.full((len(rows), max(map(len, rows))), np.inf)
    for line, row in zip(grid, rows, strict=True):
        line[: len(row)] = row
    return grid


def _buckets(possible: Bool[np.ndarray, "sites levels"]) -> int:
    """Return how many buckets a budget is divided into; sites x levels x buckets is bounded."""
    affordable = WORK // max(1, int(possible.sum()))
    return max(FEWEST, min(PER_SITE * len(possible), affordable))


def _bounded(
    costs: Grid, times: Grid, budget: float
) -> tuple[Places, Bool[np.ndarray, "sites levels"]]:
    """Return a good choice, and which levels a better one may hold.

    For any price of a millisecond, a choice within the budget that holds level s of site l costs at
    least  sum over sites of min (loss + price ms)  -  price budget  +  what s is above its site's
    minimum (Lagrangian relaxation). Where that is more than the choice that is known, s is out. The
    prices are those around which the unconstrained minimum begins to fit.
    """
    at = np.arange(len(costs))

    def fits(choice: Places) -> bool:
        return bool(times[at, choice].sum() <= budget * (1 + SLACK))

    choice = np.where(np.isfinite(costs), times, np.inf).argmin(1)
    low, high = 0.0, max(float(np.ptp(costs[np.isfinite(costs)])), 1e-12) / budget
    for _ in range(100):
        if fits(_cheapest(costs, times, high)):
            break
        low, high = high, 4 * high
    for step in range(60):
        middle = (low + high) / 2 if step else low
        cheapest = _cheapest(costs, times, middle)
        if fits(cheapest):
            high, choice = middle, cheapest
        else:
            low = middle
    choice = _filled(costs, times, budget, choice)
    best = costs[at, choice].sum()
    possible = np.isfinite(costs)
    for price in (low, high):
        priced = costs + price * times
        least = priced.min(1, keepdims=True)
        bound = least.sum() - price * budget + (priced - least)
        possible &= bound <= best + 1e-9 * (abs(least.sum()) + price * budget)
    possible[at, choice] = True
    return choice, possible


def _cheapest(costs: Grid, times: Grid, price: float) -> Places:
    """Return each site's level of the least loss + price ms, of equal ones the fastest."""
    priced = costs + price * times
    least = priced.min(1, keepdims=True)
    return np.where(priced == least, times, np.inf).argmin(1)


def _filled(costs: Grid, times: Grid, budget: float, choice: Places) -> Places:
    """Use what a choice leaves of the budget, each time for the level that lowers the loss most."""
    choice, at = choice.copy(), np.arange(len(choice))
    while True:
        left = budget - times[at, choice].sum()
        gain = costs[at, choice][:, None] - costs
        gain[times - times[at, choice][:, None] > left] = 0
        site, level = np.unravel_index(gain.argmax(), gain.shape)
        if gain[site, level] <= 0:
            return choice
        choice[site] = level


def _exact(
    costs: Grid,
    times: Grid,
    possible: Bool[np.ndarray, "sites levels"],
    budget: float,
    width: float,
) -> Places | None:
    """Solve over buckets of `width` ms; None where rounded times do not fit."""
    last = max(0, int(np.floor(budget / width + ROUNDING)))
    whole = np.ceil(np.where(possible, times, 0) / width - ROUNDING).astype(np.int64).clip(0)
    D, sums, better = np.zeros(last + 1), np.empty(last + 1), np.empty(last + 1, dtype=bool)
    taken = np.zeros((len(costs), last + 1), np.min_scalar_type(costs.shape[1]))
    for row, ticks, levels, level in zip(costs, whole, possible, taken, strict=True):
        best = np.full(last + 1, np.inf)
        for s in np.flatnonzero(levels & (ticks <= last)):
            t, n = ticks[s], last + 1 - ticks[s]
            np.add(D[:n], row[s], out=sums[:n])
            np.less(sums[:n], best[t:], out=better[:n])
            np.copyto(best[t:], sums[:n], where=better[:n])
            np.copyto(level[t:], level.dtype.type(s), where=better[:n])
        D = best  # pyright: ignore[reportConstantRedefinition]  (the paper's letter)
    if not np.isfinite(D[last]):
        return None
    choice: list[int] = []
    b = last
    for level, ticks in zip(taken[::-1], whole[::-1], strict=True):
        choice.append(int(level[b]))
        b -= int(ticks[choice[-1]])
    return np.array(choice[::-1], dtype=np.int64)
