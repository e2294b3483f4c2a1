from dataclasses import dataclass

import pytest
import torch

from pruning.job.closed_loop import SpeedTarget, prune_to_speedup, timed_again
from pruning.latency.local import Local
from pruning.latency.measurement import Measurement
from pruning.latency.timer import Timing
from pruning.models.sites import sites, weight
from pruning.runtimes.torch_eager import EAGER
from pruning.runtimes.workload import Phase
from pruning.search.problem import build_problem
from pruning.search.search import Uniform
from pruning.system.cache import Cache
from pruning.system.stopwatch import Stopwatch
from tests.helpers.data import lstsq
from tests.helpers.families import llama
from tests.helpers.tiny import levels_plan, linear_table, padded_batches, solve_levels

BATCHES = padded_batches()
SETTINGS = {
    "device": "cpu",
    "phase": Phase.auto,
    "batch": 1,
    "sequence_length": 8,
    "max_new_tokens": 2,
    "threads": None,
    "repetitions": 4,
    "noise": None,
}


class Fake(Local):
    """Measures what the table predicts of the shapes that it finds, times a factor each round."""

    def __init__(self, factors, table, **options):
        super().__init__(**options)
        self.factors, self.table, self.rounds_seen = factors, table, 0
        self.asked = ()  # whether each timing was to confirm

    def measurement(self, model, runtime=EAGER):
        return Told(**vars(super().measurement(model, runtime)), fake=self)

    def compare(self, dense, pruned, confirm=False):
        self.asked += (confirm,)
        ms = self.table.rest
        for site in sites(pruned):
            ms += self.table.ms(site, site.whole)
        factor = self.factors[min(self.rounds_seen, len(self.factors) - 1)]
        self.rounds_seen += 1
        return Timing([self.table.dense] * 3), Timing([ms / factor] * 3)


@dataclass(frozen=True)
class Told(Measurement):
    fake: Fake

    def compare(self, dense, pruned, confirm=False):
        return self.fake.compare(dense, pruned, confirm)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Give a model, its levels, a table and a search by the losses of the levels."""
    model = llama()
    directory = tmp_path_factory.mktemp("meet")
    table = linear_table(model)
    levels = solve_levels(model, BATCHES, directory, table, ridges=(0.1,))
    problem = build_problem(levels, table, None, Cache(directory))
    return model, levels, table, lambda budget: problem.solve(problem.loss, budget)


def fake(table, *factors: float) -> Fake:
    loop = {"alignment": 1, "tolerance": 0.02, "rounds": 4}
    return Fake(name="fake", factors=factors, table=table, **loop, **SETTINGS)


@pytest.mark.parametrize("factor", [0.93, 0.8, 1.1])
@pytest.mark.parametrize("speedup", [1.25, 1.6, 2.0])
def test_a_constant_factor_is_corrected(case, speedup, factor):
    model, levels, table, choose = case
    plan = levels_plan(model, levels, choose)
    met = prune_to_speedup(
        model, plan, table, SpeedTarget(speedup, fake(table, factor)), Stopwatch()
    )
    assert met.measured == pytest.approx(speedup, rel=0.02)
    assert len(met.rounds) <= 4
    assert [entry["confirms"] for entry in met.rounds] == [*[False] * (len(met.rounds) - 1), True]
    assert met.measured == pytest.approx(met.predicted * factor, rel=1e-9)
    assert met.rounds[0]["aim"] == speedup
    assert met.rounds[-1]["measured"] == met.measured
    assert met.predicted == pytest.approx(table.dense / table.predict(met.allocation))
    for site, keep in met.allocation.items():  # the model is the allocation
        left = next((s for s in sites(met.pruned) if s.name == site.name), None)
        assert (left.units if left else 0) == int(keep.sum())


def test_the_nearest_round_is_kept_when_none_is_near_enough(case, caplog):
    model, levels, table, choose = case
    plan = levels_plan(model, levels, choose)
    here = fake(table, 0.7, 1.4, 0.7, 1.4, 1.1)
    met = prune_to_speedup(model, plan, table, SpeedTarget(1.5, here), Stopwatch())
    *chosen, last = met.rounds
    assert len(chosen) == 4
    nearest = min(chosen, key=lambda r: abs(r["measured"] - 1.5))
    assert (last["aim"], last["predicted"]) == (nearest["aim"], nearest["predicted"])
    assert [entry["confirms"] for entry in met.rounds] == [False] * 4 + [True]
    assert here.asked == (False,) * 4 + (True,)
    assert met.measured == last["measured"] == pytest.approx(1.1 * met.predicted)
    assert "nearest model after 5 timings" in caplog.text


def test_what_chose_a_round_is_not_what_is_reported(case):
    """A lucky timing of the right speedup chooses; the next one, of that model, is the result."""
    model, levels, table, choose = case
    plan = levels_plan(model, levels, choose)
    met = prune_to_speedup(
        model, plan, table, SpeedTarget(1.5, fake(table, 1.0, 1.01)), Stopwatch()
    )
    assert [entry["confirms"] for entry in met.rounds] == [False, True]
    assert met.rounds[0]["measured"] == pytest.approx(met.predicted)
    assert met.measured == met.rounds[1]["measured"] == pytest.approx(1.01 * met.predicted)
    assert met.pruned_timing.values == pytest.approx([table.dense / met.measured] * 3)
    assert len(met.dense_timing.values) == met.rounds[1]["pairs"] == 3


def test_a_confirmation_outside_the_tolerance_is_followed_by_another_round(case):
    """The first timing was lucky: 1.0 of what is predicted, where 0.9 is the truth."""
    model, levels, table, choose = case
    plan = levels_plan(model, levels, choose)
    met = prune_to_speedup(model, plan, table, SpeedTarget(1.5, fake(table, 1.0, 0.9)), Stopwatch())
    confirms = [entry["confirms"] for entry in met.rounds]
    assert confirms[:2] == [False, True]
    assert confirms[2] is False
    assert confirms[-1] is True
    assert met.measured == met.rounds[-1]["measured"]
    assert met.measured == pytest.approx(1.5, rel=0.02)
    assert met.predicted == pytest.approx(1.5 / 0.9, rel=0.03)


def test_a_costly_model_is_timed_itself_when_its_draft_is_confirmed(case):
    model, levels, table, choose = case
    plan = levels_plan(model, levels, choose)
    built = []
    plan.expensive, plan.build = (
        True,
        lambda shapes: built.append(shapes) or plan.timing_model(shapes),
    )
    met = prune_to_speedup(
        model, plan, table, SpeedTarget(1.5, fake(table, 1.0, 1.0, 1.2)), Stopwatch()
    )
    assert len(built) == 1
    assert [entry["confirms"] for entry in met.rounds] == [False, True, True]
    assert met.measured == met.rounds[-1]["measured"] == pytest.approx(1.2 * met.predicted)


def test_other_weights_are_timed_anew_and_that_alone_counts(case):
    model, levels, table, choose = case
    here = fake(table, 1.0, 1.01, 1.2)
    met = prune_to_speedup(
        model, levels_plan(model, levels, choose), table, SpeedTarget(1.5, here), Stopwatch()
    )
    former, rounds = met, list(met.rounds)
    met = timed_again(met, model, here.measurement(model))
    assert list(former.rounds) == rounds  # what was measured before stays as it was
    assert former.measured == rounds[-1]["measured"] != met.measured
    assert met.measured == met.rounds[-1]["measured"] == pytest.approx(1.2 * met.predicted)
    assert met.rounds[-1]["confirms"] is True
    assert here.asked[-1] is True
    assert len(met.dense_timing.values) == 3


def test_a_confirmation_takes_more_pairs(case):
    here = fake(None).measurement(case[0])
    assert here.pairs(False) == (4, 0.01)
    assert here.pairs(True) == (8, 0.005)


def test_what_no_search_reaches_is_an_error(case, tmp_path):
    model, levels, table, _ = case
    uniform = Uniform(name="uniform")
    choose = uniform.prepare(build_problem(levels, table, None, Cache(tmp_path)), table.budget(3.0))
    with pytest.raises(ValueError, match=r"^speedup=3 cannot be met with this search.*calibrated"):
        prune_to_speedup(
            model,
            levels_plan(model, levels, choose),
            table,
            SpeedTarget(3.0, fake(table, 1.0)),
            Stopwatch(),
        )


def test_a_correction_that_cannot_be_met_keeps_the_nearest(case, caplog):
    model, levels, table, choose = case
    speedup = table.most(sites(model)) * 0.98
    met = prune_to_speedup(
        model,
        levels_plan(model, levels, choose),
        table,
        SpeedTarget(speedup, fake(table, 0.8)),
        Stopwatch(),
    )
    assert met.measured == pytest.approx(0.8 * met.predicted)
    assert "no allocation is predicted to reach" in caplog.text
    assert "the nearest model after" in caplog.text


@torch.no_grad()
def test_speedup_one_is_the_dense_model(case):
    model, levels, table, choose = case
    plan = levels_plan(model, levels, choose)
    met = prune_to_speedup(model, plan, table, SpeedTarget(1.0, fake(table, 0.9)), Stopwatch())
    assert [entry["confirms"] for entry in met.rounds] == [True]
    assert all(keep.all() for keep in met.allocation.values())
    ids = BATCHES[0].ids
    assert torch.equal(met.pruned(input_ids=ids).logits, model(input_ids=ids).logits)


@torch.no_grad()
def test_a_built_model_has_least_squares_weights_and_leaves_the_dense_one_alone(case):
    """The down projection of one block against lstsq on the inputs that hooks see."""
    model, levels, _, _ = case
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    index, site = next((i, s) for i, s in enumerate(levels) if s.name == "block.1.ffn")
    level = 6
    shapes = {s: of.shapes[level if i == index else 0] for i, (s, of) in enumerate(levels.items())}
    pruned, allocation = levels_plan(model, levels, lambda _: None).build(shapes)
    assert [s for s, keep in allocation.items() if not keep.all()] == [site]
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())

    X = []
    down = model.model.layers[1].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda m, args: X.append(args[0]))
    for batch in BATCHES:
        model(input_ids=batch.ids, attention_mask=batch.mask)
        X[-1] = X[-1][batch.mask.bool()]
    hook.remove()
    keep = levels[site].keeps[level]
    W = down.weight
    inputs = torch.cat(X).double()
    expected = lstsq(W.double(), inputs, keep, ridge=0.1)
    found = weight(pruned.model.layers[1].mlp.down_proj)
    assert found.shape == (64, int(keep.sum()))
    # float32 moments of some 150 tokens in 96 dimensions, conditioned by the ridge of 0.1
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4)
    assert (found - W[:, keep]).abs().max() > 0.01
