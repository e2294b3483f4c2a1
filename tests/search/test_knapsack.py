from itertools import product

import numpy as np
import pytest

from pruning.search import knapsack as solver
from pruning.search.knapsack import knapsack


def table(random: np.random.Generator, integers: bool):
    """Draw losses and times of up to five sites with up to six levels, dense first."""
    loss, ms = [], []
    for levels in random.integers(1, 7, size=random.integers(1, 6)):
        loss.append(np.sort(random.random(levels)))
        times = random.integers(0, 40, levels) if integers else 40 * random.random(levels)
        ms.append(np.sort(times.astype(float))[::-1])
    return loss, ms


def best(loss, ms, budget: float) -> float | None:
    """Try every choice."""
    fitting = [
        sum(row[s] for row, s in zip(loss, choice, strict=True))
        for choice in product(*(range(len(row)) for row in loss))
        if sum(row[s] for row, s in zip(ms, choice, strict=True)) <= budget
    ]
    return min(fitting) if fitting else None


def total(rows, choice) -> float:
    return sum(row[s] for row, s in zip(rows, choice, strict=True))


@pytest.mark.parametrize("seed", range(60))
def test_whole_times_are_solved_exactly(seed):
    """Where every time is a whole number of buckets, nothing is rounded: brute force decides."""
    random = np.random.default_rng(seed)
    loss, ms = table(random, integers=True)
    for budget in (1.0, 13.0, 40.0, 77.0, 300.0):
        choice = knapsack(loss, ms, budget, buckets=int(budget))
        expected = best(loss, ms, budget)
        assert (choice is None) == (expected is None)
        if choice is not None:
            assert total(ms, choice) <= budget
            assert total(loss, choice) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("buckets", [50, 10_000])
@pytest.mark.parametrize("seed", range(30))
def test_any_times_never_exceed_the_budget(seed, buckets):
    """Each time is rounded up by less than a bucket: at least as good as with that much less."""
    random = np.random.default_rng(1000 + seed)
    loss, ms = table(random, integers=False)
    for budget in (5.0, 33.3, 60.0, 150.0):
        choice = knapsack(loss, ms, budget, buckets)
        lost = len(loss) * budget / buckets
        careful, ideal = best(loss, ms, budget - lost), best(loss, ms, budget)
        if choice is None:
            assert careful is None
        else:
            assert total(ms, choice) <= budget * (1 + 1e-9)
            assert ideal is not None
            assert total(loss, choice) >= ideal - 1e-12
            if careful is not None:
                assert total(loss, choice) <= careful + 1e-12


def test_what_does_not_fit_is_none():
    loss, ms = [np.array([0.0, 1.0])] * 2, [np.array([5.0, 3.0])] * 2
    assert knapsack(loss, ms, 5.9) is None
    assert knapsack(loss, ms, 6.0) == [1, 1]
    assert knapsack(loss, ms, 0.0) is None
    assert knapsack(loss, ms, -1.0) is None
    assert knapsack(loss, [np.array([5.0, 0.0])] * 2, 1e-6) == [1, 1]


def test_ties_go_to_the_earlier_level():
    assert knapsack([np.zeros(3)], [np.array([2.0, 2.0, 1.0])], 4.0) == [0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("seed", range(10))
def test_what_is_not_finite_is_never_chosen(seed, bad):
    """Neither a loss nor a time: as if the level were not there."""
    random = np.random.default_rng(2000 + seed)
    loss, ms = table(random, integers=True)
    hurt = [(row.copy(), times.copy()) for row, times in zip(loss, ms, strict=True)]
    allowed = []
    for row, times in hurt:
        at = random.random(len(row)) < 0.4
        row[at], times[~at & (random.random(len(row)) < 0.2)] = bad, bad
        allowed.append(np.isfinite(row) & np.isfinite(times))
    dear = [np.where(ok, row, 1e6) for ok, row in zip(allowed, loss, strict=True)]
    for budget in (13.0, 77.0, 300.0):
        choice = knapsack(*zip(*hurt, strict=True), budget, buckets=int(budget))
        expected = best(dear, ms, budget)
        if expected is None or expected >= 1e6:
            assert choice is None
        else:
            assert all(ok[s] for ok, s in zip(allowed, choice, strict=True))
            assert total(loss, choice) == pytest.approx(expected, rel=1e-12)


def test_what_is_left_out_before_is_in_no_best_choice():
    """All best choices within the budget stay possible, ties and levels of infinite loss included.

    Losses and times are few whole numbers, so that many choices are as good as each other.
    """
    out = 0
    for seed in range(40):
        random = np.random.default_rng(3000 + seed)
        rows = random.integers(1, 6, size=5)
        loss = [random.integers(-2, 5, levels).astype(float) for levels in rows]
        ms = [random.integers(0, 6, levels).astype(float) for levels in rows]
        for row in loss:
            row[random.random(len(row)) < 0.2] = np.inf
        costs = solver._grid(loss)
        times = np.where(np.isfinite(costs), solver._grid(ms), 0.0)
        for budget in (1.0, 4.0, 8.0, 12.0, 20.0):
            least = best(loss, ms, budget)
            if least is None or not np.isfinite(least):
                continue
            known, possible = solver._bounded(costs, times, budget)
            assert total(ms, known) <= budget
            out += int((np.isfinite(costs) & ~possible).sum())
            for choice in product(*(range(len(row)) for row in loss)):
                if total(ms, choice) <= budget and total(loss, choice) == least:
                    assert all(possible[site, level] for site, level in enumerate(choice))
    assert out > 100


def of_many_sites(sites: int, levels: int, seed: int):
    """Make the sites of a model whose blocks are alike in time, and differ in loss."""
    random = np.random.default_rng(seed)
    loss, ms = [], []
    for index in range(sites):
        share = np.linspace(1, 0, levels)
        noise = 1 + 0.05 * random.random(levels)
        curve = np.maximum.accumulate((1 - share) ** random.uniform(1.2, 4) * noise)
        loss.append(np.exp(random.standard_normal()) * curve)
        ms.append((0.1, 0.3, 0.07)[index % 3] * share)
    return loss, ms


def pareto(loss, ms, budget: float) -> float:
    """Return the least loss exactly: all choices but those that another one beats in both."""
    states = np.zeros((1, 2))
    for row, times in zip(loss, ms, strict=True):
        both = np.stack([times, row], 1)
        sums = (states[:, None] + both[None]).reshape(-1, 2)
        sums = sums[sums[:, 0] <= budget * (1 + 1e-9)]
        sums = sums[np.lexsort((sums[:, 1], sums[:, 0]))]
        lowest = np.minimum.accumulate(sums[:, 1])
        states = sums[np.r_[True, lowest[1:] < lowest[:-1]]]
    return float(states[:, 1].min())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_many_buckets_are_next_to_exact(seed, share):
    """Against the list of all choices that no other one beats, of times that are not whole."""
    loss, ms = of_many_sites(12, 8, seed)
    ms = [row * np.random.default_rng(seed).uniform(0.5, 1.5) for row in ms]
    budget = share * sum(row[0] for row in ms)
    choice = knapsack(loss, ms, budget)
    assert total(ms, choice) <= budget * (1 + 1e-9)
    # at most 12 buckets of 24,000 are lost, so no more loss than with that much less to spend
    assert total(loss, choice) <= pareto(loss, ms, budget * (1 - 12 / 24_000)) + 1e-12
    assert total(loss, choice) >= pareto(loss, ms, budget) - 1e-12


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("sites", [60, 224])
def test_no_more_than_a_2000th_of_the_budget_is_lost(sites, share, monkeypatch):
    """And the steps for it are bounded: those of 10,000 buckets, or half a billion."""
    steps = []
    exact = solver._exact

    def counted(costs, times, possible, budget, width):
        steps.append(int(possible.sum()) * budget / width)
        return exact(costs, times, possible, budget, width)

    monkeypatch.setattr(solver, "_exact", counted)
    loss, ms = of_many_sites(sites, 129, seed=sites)
    budget = share * sum(row[0] for row in ms)
    choice = knapsack(loss, ms, budget)
    assert 1 - 1 / 2000 <= total(ms, choice) / budget <= 1 + 1e-9
    assert sum(steps) <= max(10_000 * sites * 129, 500_000_000)
    # the bound of linear programming: mixtures of levels on the lower hull, cheapest steps first
    assert total(loss, choice) <= 1.003 * relaxed(loss, ms, budget)


def relaxed(loss, ms, budget: float) -> float:
    """Return the least loss where a site may mix two levels; no choice of whole ones is better."""
    found, left, steps = 0.0, budget, []
    for row, times in zip(loss, ms, strict=True):
        order = np.argsort(times)
        hull = []
        for point in zip(times[order], row[order], strict=True):
            if hull and hull[-1][1] <= point[1]:  # slower and no better
                continue
            while len(hull) > 1 and _above(hull[-2], hull[-1], point):
                hull.pop()
            hull.append(point)
        found, left = found + hull[0][1], left - hull[0][0]
        pairs = zip(hull[1:], hull[:-1], strict=True)
        steps += [((b[1] - a[1]) / (a[0] - b[0]), a[0] - b[0]) for a, b in pairs]
    for rate, time in sorted(steps, reverse=True):
        used = min(time, left)
        found, left = found - rate * used, left - used
    return found


def _above(first, middle, last) -> bool:
    """Tell whether the middle point lies on or above the line between the others."""
    slope = (last[1] - first[1]) / (last[0] - first[0])
    return middle[1] >= first[1] + slope * (middle[0] - first[0])
