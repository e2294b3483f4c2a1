from itertools import product

import numpy as np
import pytest

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
