import json
from itertools import count, pairwise

import numpy as np
import pytest

from pruning.models.sites import Kind, Site
from pruning.search.options import Objective
from pruning.search.problem import Problem, calibrate_priors
from pruning.search.search import Calibrated, Spdy, Uniform
from pruning.system.cache import Cache
from tests.helpers.shapes import shapes

BLOCKS = 7
WIDTHS = np.array([10, 9, 7, 4, 2, 0])


def problem(tmp_path, evaluate=None) -> Problem:
    """Make blocks whose FFN takes 1 ms per 10 channels and whose attention takes 2 ms per head."""
    sites, levels, loss, ms, kept = [], [], [], [], []
    for block in range(BLOCKS):
        sites += [Site(block, Kind.ATTENTION, 2, 4, 2), Site(block, Kind.FFN, 10, 1)]
        levels += [shapes([(2, 1), (1, 1), (0, 0)]), shapes(WIDTHS.tolist())]
        loss += [np.array([0, 0.4, 1.0]), 1 - WIDTHS / 10]
        ms += [np.array([4.0, 2.0, 0.0]), WIDTHS / 10]
        kept += [np.array([1, 0.5, 0.0]), WIDTHS / 10]
    identity = {"test": str(evaluate)}
    found = Problem(sites, levels, loss, ms, kept, 3.0, None, Cache(tmp_path), identity)
    found.trial = evaluate
    return found


class Measured:
    """Stands in for a trial: a loss in which sites matter by other factors than the priors say."""

    def __init__(self, of: Problem, factors: np.ndarray):
        self.of, self.factors, self.calls = of, factors, 0

    def evaluate(self, choice) -> float:
        self.calls += 1
        losses = [row[s] for row, s in zip(self.of.loss, choice, strict=True)]
        return float(self.factors @ np.array(losses))

    def sensitivities(self, levels, scratch=None) -> list[dict[int, float]]:
        return [
            {s: float(factor * row[s]) for s in of}
            for factor, row, of in zip(self.factors, self.of.loss, levels, strict=True)
        ]


def test_uniform_is_the_widest_schedule_that_fits(tmp_path):
    posed = problem(tmp_path)
    dense = posed.total([0] * 2 * BLOCKS)
    assert dense == pytest.approx(3 + 5 * BLOCKS)
    choose = Uniform(name="uniform").prepare(posed, dense)
    for budget in np.linspace(dense - BLOCKS, dense, 40):
        choice = choose(float(budget))
        assert choice is not None
        assert posed.total(choice) <= budget
        assert not any(choice[::2])  # attention is untouched
        level, lower = min(choice[1::2]), max(choice[1::2])
        assert lower - level <= 1
        if any(choice):  # one block more at the higher level would be too slow
            at = choice[1::2].index(lower)
            wider = list(choice)
            wider[2 * at + 1] -= 1
            assert posed.total(wider) > budget
        cut = [i for i, s in enumerate(choice[1::2]) if s == lower]
        gaps = {b - a for a, b in pairwise(cut)}
        assert not gaps or max(gaps) - min(gaps) <= 1  # spread evenly over the depth
    assert choose(dense - BLOCKS - 0.01) is None


def test_scaled_meets_what_was_measured():
    prior = np.array([0.0, 0.02, 0.1, 0.35, 0.6, 1.0])
    measured = {1: 0.5, 3: 0.9, 5: 4.0}
    found = calibrate_priors(prior, measured)
    for level, loss in measured.items():
        assert found[level] == pytest.approx(loss, rel=1e-12)
    assert found[0] == 0
    # between two measured levels the ratio lies between theirs: 0.9 / 0.35 and 0.5 / 0.02
    assert 0.9 / 0.35 < found[2] / prior[2] < 0.5 / 0.02
    assert np.isfinite(found).all()


def test_scaled_beyond_what_was_measured_keeps_the_ratio():
    prior = np.array([0.0, 0.02, 0.1, 0.35, 0.6, 1.0])
    found = calibrate_priors(prior, {3: 0.7})
    np.testing.assert_allclose(found, 2 * prior, rtol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("prior", [np.zeros(4), np.array([0.0, 0.0, 0.5, 1.0])])
def test_scaled_survives_a_site_that_costs_nothing(prior):
    """A site that is always zero (a block added by depth up-scaling) has priors of zero."""
    found = calibrate_priors(prior, {1: 0.0, 3: 0.0})
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (np.diff(found) >= 0).all()


@pytest.mark.filterwarnings("error")
def test_what_was_measured_as_infinite_is_infinitely_dear():
    """And so is whatever takes more away; dense is free, and what is finite is as it was."""
    prior = np.array([0.0, 0.02, 0.1, 0.35, 0.6, 1.0])
    found = calibrate_priors(prior, {1: 0.5, 3: np.inf, 5: np.inf})
    np.testing.assert_allclose(found, [0, 0.5, 2.5, np.inf, np.inf, np.inf], rtol=1e-12)
    np.testing.assert_allclose(
        calibrate_priors(prior, {3: 0.7, 5: np.inf}), [0, 0.04, 0.2, 0.7, 1.2, np.inf], rtol=1e-12
    )
    nothing = calibrate_priors(prior, {3: np.inf, 5: np.inf})
    assert nothing.tolist() == [0, *[np.inf] * 5]
    at_once = calibrate_priors(np.array([0.0, np.inf, 1.0]), {2: 3.0})
    np.testing.assert_allclose(at_once, [0, np.inf, 3], rtol=1e-12)


@pytest.mark.parametrize(
    "search",
    [
        Spdy(
            name="spdy",
            objective=Objective.kl,
            tokens=1,
            steps=150,
            mutation=0.1,
            inits=50,
        ),
        Calibrated(
            name="calibrated",
            objective=Objective.kl,
            tokens=1,
            steps=10,
            mutation=0.1,
            anchors=[0.5, 0.0],
        ),
    ],
    ids=lambda search: search.name,
)
def test_a_search_finds_what_the_priors_do_not_know(tmp_path, search):
    """Sites differ in what they really cost; the DP on the true costs is the optimum."""
    posed = problem(tmp_path)
    factors = np.exp(np.random.default_rng(1).standard_normal(2 * BLOCKS))
    posed.trial = measured = Measured(posed, factors)
    budget = posed.total([0] * 2 * BLOCKS) / 2
    choice = search.prepare(posed, budget)(budget)
    assert choice is not None
    assert posed.total(choice) <= budget
    true = [row * factor for row, factor in zip(posed.loss, factors, strict=True)]
    optimum = measured.evaluate(posed.solve(true, budget))
    blind = measured.evaluate(posed.solve(posed.loss, budget))
    found = measured.evaluate(choice)
    assert optimum <= found + 1e-12
    # half of the way from the priors to the optimum; the sensitivities here say all there is
    assert found <= (optimum if search.name == "calibrated" else (optimum + blind) / 2) + 1e-9
    assert optimum < 0.9 * blind


class Piling(Measured):
    """A model that loses more by several attentions than the sum of what each loses alone."""

    def evaluate(self, choice) -> float:
        losses = [row[s] for row, s in zip(self.of.loss, choice, strict=True)]
        attention = sum(losses[::2])
        return super().evaluate(choice) + 0.5 * attention**2


def test_what_several_attentions_lose_together_is_balanced(tmp_path):
    """The sensitivities do not tell it; of the factors the one of the best whole model is kept."""
    posed = problem(tmp_path)
    posed.trial = piling = Piling(posed, np.ones(2 * BLOCKS))
    budget, balances = posed.total([0] * 2 * BLOCKS) / 2, [1.0, 1.5, 2.0, 4.0]
    choice = Calibrated("calibrated", balances=balances).prepare(posed, budget)(budget)
    by_factor = {}
    for factor in balances:
        weights = np.where(np.arange(2 * BLOCKS) % 2 == 0, factor, 1.0)
        loss = [row * weight for row, weight in zip(posed.loss, weights, strict=True)]
        by_factor[factor] = piling.evaluate(posed.solve(loss, budget))
    assert piling.evaluate(choice) == min(by_factor.values())
    assert min(by_factor.values()) < by_factor[1.0]
    assert len(posed.history) <= len(balances)
    alone = Calibrated("calibrated", balances=[1.0]).prepare(posed, budget)(budget)
    assert piling.evaluate(alone) == by_factor[1.0]


@pytest.mark.parametrize("search", ["spdy", "calibrated"])
def test_candidates_are_drawn_by_the_seed(tmp_path, search):
    """The same seed tries the same candidates, another one tries others."""
    guided = {"objective": Objective.kl, "tokens": 1, "mutation": 0.3}
    chosen = {
        "spdy": Spdy("spdy", **guided, steps=12, inits=6),
        "calibrated": Calibrated("calibrated", **guided, steps=12, anchors=[0.5, 0.0]),
    }[search]

    number = count()

    def tried(seed: int) -> list[tuple[int, ...]]:
        posed = problem(tmp_path / str(next(number)))  # a cache of its own: nothing is there yet
        posed.seed, seen = seed, []
        posed.trial = measured = Measured(posed, np.linspace(0.3, 3, 2 * BLOCKS))
        evaluate = measured.evaluate
        measured.evaluate = lambda choice: seen.append(tuple(choice)) or evaluate(choice)
        chosen.prepare(posed, 19.0)
        return seen

    assert len(tried(0)) > 3
    assert tried(0) == tried(0)
    assert tried(0) != tried(1)


@pytest.mark.parametrize("name", ["spdy", "calibrated"])
def test_a_search_is_made_once_for_a_budget(tmp_path, name):
    """Found in the cache it answers as before, measures nothing, and its candidates are known."""
    guided = {"objective": Objective.kl, "tokens": 1, "mutation": 0.3, "steps": 12}
    search = {
        "spdy": Spdy("spdy", **guided, inits=6),
        "calibrated": Calibrated("calibrated", **guided, anchors=[0.5, 0.0]),
    }[name]
    first, again, other = problem(tmp_path), problem(tmp_path), problem(tmp_path)
    for posed in (first, again, other):
        posed.trial = Measured(posed, np.linspace(0.3, 3, 2 * BLOCKS))
    choose, later = search.prepare(first, 19.0), search.prepare(again, 19.0)
    assert first.trial.calls > 3
    assert again.trial.calls == 0
    for budget in np.linspace(12, 38, 30):
        assert later(float(budget)) == choose(float(budget))
    assert again.history == first.history
    assert len(again.history) == first.trial.calls
    search.prepare(other, 25.0)
    assert other.trial.calls > 3


def test_sensitivities_are_measured_once(tmp_path):
    posed = problem(tmp_path)
    posed.trial = Measured(posed, np.ones(2 * BLOCKS))
    first = posed.sensitivities([0.5, 0.0])
    posed.trial = None  # would fail if it were asked
    assert posed.sensitivities([0.5, 0.0]) == first
    assert first[0] == {1: 0.4, 2: 1.0}
    assert set(first[1]) == {3, 5}  # widths 4 and 0 are nearest the anchors 0.5 and 0


def test_a_sensitivity_that_is_infinite_is_null_on_disk(tmp_path):
    posed = problem(tmp_path)
    factors = np.ones(2 * BLOCKS)
    factors[3] = np.inf
    posed.trial = Measured(posed, factors)
    found = posed.sensitivities([0.5, 0.0])
    assert found[3] == {3: np.inf, 5: np.inf}
    assert found[2] == {1: 0.4, 2: 1.0}
    (path,) = tmp_path.glob("sensitivities/*/sensitivities.json")

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    rows = json.loads(path.read_text(), parse_constant=refuse)
    assert rows[3] == {"3": None, "5": None}


def test_sensitivities_belong_to_their_levels(tmp_path):
    """Other levels of the same shapes, on the same text, are measured anew."""
    posed, other = problem(tmp_path), problem(tmp_path)
    posed.identity, other.identity = {"levels": "of one method"}, {"levels": "of another"}
    posed.trial = Measured(posed, np.ones(2 * BLOCKS))
    other.trial = Measured(other, np.full(2 * BLOCKS, 3.0))
    assert posed.sensitivities([0.5, 0.0]) != other.sensitivities([0.5, 0.0])


def test_the_dense_choice_needs_no_search(tmp_path):
    posed = problem(tmp_path)
    dense = [0] * 2 * BLOCKS
    assert posed.solve(posed.loss, posed.total(dense)) == dense


def test_a_site_that_can_only_stay_is_left_alone(tmp_path):
    """Such as a projection of which no rank is faster than the whole."""
    posed = problem(tmp_path)
    posed.shapes[3], posed.loss[3] = posed.shapes[3][:1], posed.loss[3][:1]
    posed.ms[3], posed.kept[3] = posed.ms[3][:1], posed.kept[3][:1]
    posed.trial = Measured(posed, np.ones(2 * BLOCKS))
    found = posed.sensitivities([0.5])
    assert found[3] == {}
    assert all(len(row) == 1 for index, row in enumerate(found) if index != 3)
    assert calibrate_priors(posed.loss[3], found[3]).tolist() == [0]
