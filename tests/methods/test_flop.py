"""FLOP: gates against Monte Carlo, the constraint against finite differences, what is extracted."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pruning.calibration.calibration import Calibration, Weight
from pruning.calibration.moments import Moments
from pruning.calibration.passes import collect
from pruning.latency.table import LatencyTable, Shapes
from pruning.methods.flop.constraint import Cost, Lagrangian, counts
from pruning.methods.flop.embedding import Tokens
from pruning.methods.flop.flop import FLOP
from pruning.methods.flop.gates import GatedLowRank, Gates
from pruning.methods.flop.gating import gated_, product, restored_
from pruning.methods.flop.learned import LearnedPlan
from pruning.methods.flop.recipe import Embedding
from pruning.methods.flop.training import Goal, train
from pruning.models.modeling_pruned import LowRank
from pruning.models.shape import Width
from pruning.models.sites import Kind, Site, projection, weight
from pruning.search.options import Objective
from pruning.search.search import Spdy
from pruning.system.cache import Cache
from pruning.tasks.training import own, save_parameters
from tests.helpers.data import inputs, weights
from tests.helpers.families import ENCODERS, EVERY, FAMILIES, llama
from tests.helpers.shapes import costs
from tests.helpers.tiny import job_with, padded_batches, pruning_context

BATCHES = padded_batches()


def flop(**values) -> FLOP:
    settings = {
        "sparsity": None,
        "modules": "*",
        "embedding": Embedding.none,
        "clusters": [],
        "whiten": True,
        "room": 1.5,
        "slope": 8.0,
        "beta": 1.0,
        "noise": True,
        "steps": 12,
        "warmup": 0.5,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "gate_learning_rate": 0.1,
        "multiplier_learning_rate": 1.0,
        "penalty": 0.0,
        "max_grad_norm": 1.0,
        "save_steps": 4,
    }
    return FLOP("flop", **(settings | values))


@pytest.mark.parametrize("beta", [1.0, 2 / 3])
@pytest.mark.parametrize("log_alpha", [-4.0, -1.5, 0.0, 2.0])
def test_expected_rank_is_how_often_gates_are_open(beta, log_alpha):
    gates = Gates(torch.full((400_000,), log_alpha), beta, noise=True)
    torch.manual_seed(0)
    open_share = float((gates.sample() > 0).float().mean())
    expected = float(gates.rank().detach()) / 400_000
    # four standard errors of a share of 400,000 draws
    assert abs(open_share - expected) < 4 * (expected * (1 - expected) / 400_000) ** 0.5 + 1e-9


def test_gates_without_noise_are_the_middle_of_those_with_it():
    log_alpha = torch.linspace(-6, 6, 25)
    quiet = Gates(log_alpha, 1.0, noise=False).sample()
    torch.manual_seed(0)
    loud = torch.stack([Gates(log_alpha, 1.0, noise=True).sample() for _ in range(4001)])
    # the gates are monotone in the noise, so the median of the one is the other's median
    torch.testing.assert_close(quiet, loud.median(0).values, rtol=0, atol=0.06)
    assert torch.equal(quiet, Gates(log_alpha, 1.0, noise=False).sample())


def module(rank: int = 10, bias: bool = True) -> GatedLowRank:
    generator = torch.Generator().manual_seed(2)
    log_alpha = 3 * torch.randn(rank, generator=generator)
    A, B = weights(rank, 12).float(), weights(9, rank, 3).float()
    return GatedLowRank(A, B, torch.ones(9) if bias else None, Gates(log_alpha, 1.0, True)).eval()


def test_evaluation_keeps_as_many_terms_as_expected_and_folds_exactly():
    gated, x = module(), inputs(7, 12).float()
    z = gated.gates.fixed()
    kept = round(float(gated.gates.rank().detach()))
    assert int((z > 0).sum()) == kept < 10
    # by hand: soft gates for the largest log_alpha, 0 for the others
    cut = gated.gates.log_alpha.sort().values[-kept]
    by_hand = torch.where(
        gated.gates.log_alpha >= cut, torch.sigmoid(0.8 * gated.gates.log_alpha), 0.0
    )
    torch.testing.assert_close(z, by_hand)
    full = x @ gated.A.T @ torch.diag(by_hand) @ gated.B.T + 1
    torch.testing.assert_close(gated(x), full)
    A, B = gated.folded()
    assert A.shape == (kept, 12)
    torch.testing.assert_close(x @ A.T @ B.T + 1, full)


@pytest.mark.parametrize("closed", [1, 6])
def test_leaving_dead_terms_out_changes_neither_outputs_nor_gradients(closed):
    gated, x = module().train(), inputs(7, 12).float()
    with torch.no_grad():
        gated.gates.log_alpha[:closed] = -50  # closed whatever the noise
        gated.gates.log_alpha[closed:] = 1
    torch.manual_seed(1)
    out = gated(x)
    out.square().sum().backward()
    found = [p.grad.clone() for p in gated.parameters()]
    gated.zero_grad()
    torch.manual_seed(1)
    z = gated.gates.sample()
    expected = x @ gated.A.T @ torch.diag(z) @ gated.B.T + gated.bias
    torch.testing.assert_close(out, expected)
    expected.square().sum().backward()
    for mine, p in zip(found, gated.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad)


SITES = [Site(0, Kind.LINEAR, 8, module="a"), Site(0, Kind.LINEAR, 4, module="b")]
TABLE = LatencyTable(
    parts={
        "a": costs({8: 5.0, 6: 6.0, 4: 4.0, 2: 2.5}),
        "b": costs({4: 3.0, 2: 1.0, 1: 1.2}),
    },
    rest=2.0,
    blocks=1,
    spread=1.0,
    dense=10.0,
)


def test_costs_by_hand():
    cost = Cost.from_table(TABLE, SITES)
    ranks = {SITES[0]: torch.tensor(3.0), SITES[1]: torch.tensor(1.5)}
    # a: between 2.5 ms at 2 and 4 at 4; b: rank 1 cannot cost more than rank 2 does, 1.2
    assert float(cost.saved(ranks)) == pytest.approx(1 - (2 + 3.25 + 1.2) / 10, rel=1e-5)
    ranks = {SITES[0]: torch.tensor(8.0), SITES[1]: torch.tensor(0.5)}
    # a: beyond 6 on at 1 ms per rank, but the dense projection takes 5; b: half of 1.2
    assert float(cost.saved(ranks)) == pytest.approx(1 - (2 + 5 + 0.6) / 10, rel=1e-5)
    cost = Cost.from_table(counts({SITES[0]: (8, 20), SITES[1]: (4, 4)}, TABLE), SITES)
    ranks = {SITES[0]: torch.tensor(3.0), SITES[1]: torch.tensor(1.0)}
    assert float(cost.saved(ranks)) == pytest.approx(1 - (3 * 28 + 8) / 176, rel=1e-5)


def test_a_site_too_small_for_ranks_costs_what_it_is():
    small = LatencyTable({"a": costs({8: 5.0})}, 2.0, 1, 1.0, 7.0)
    cost = Cost.from_table(small, SITES[:1])
    assert float(cost.saved({SITES[0]: torch.tensor(8.0)})) == pytest.approx(0)


def test_the_constraint_is_climbed_and_descended():
    """Gradients against finite differences: gates lower the penalty, multipliers raise it."""
    cost, lagrangian = Cost.from_table(TABLE, SITES), Lagrangian(0.0).double()
    with torch.no_grad():
        lagrangian.linear.fill_(0.7)
        lagrangian.quadratic.fill_(2.0)
    rank = torch.tensor(3.3, dtype=torch.float64, requires_grad=True)
    other = torch.tensor(1.7, dtype=torch.float64)

    def penalty(rank):
        return lagrangian(cost.saved({SITES[0]: rank, SITES[1]: other}), 0.5)

    penalty(rank).backward()
    step = 1e-6
    difference = (penalty(rank + step) - penalty(rank - step)) / (2 * step)
    assert float(rank.grad) == pytest.approx(float(difference.detach()), rel=1e-5)
    saved = float(cost.saved({SITES[0]: rank.detach(), SITES[1]: other}))
    assert float(lagrangian.linear.grad) == pytest.approx(saved - 0.5)
    assert float(lagrangian.quadratic.grad) == pytest.approx((saved - 0.5) ** 2)


def moments_of(model, of, directory: Path) -> Moments:
    moments = Moments(directory)
    for index, block in enumerate(collect(model, BATCHES, Weight.none, of)):
        moments.write(index, block)
    return moments


def table_of(sites: list[Site]) -> LatencyTable:
    """Make a table in which half the rank takes half the time, and dense as long as 3/4 of it."""
    parts = {}
    for site in sites:
        r = site.units
        parts[site.part] = costs({r: 0.75, r // 2: 0.5, r // 4: 0.25, r // 8: 0.125})
    blocks = len({site.block for site in sites})
    return LatencyTable(parts, 1.0, blocks, 1.0, 1.0 + 0.75 * len(sites))


def half(of: list[Site]) -> Shapes:
    """Let projections start at half their rank, every third one whole."""
    return {s: s.whole if i % 3 == 2 else Width(s.units // 2) for i, s in enumerate(of)}


def plan_of(dense, tmp_path, **values) -> LearnedPlan:
    method = flop(**values)
    of = method.sites(dense)
    trained = gated_(deepcopy(dense), moments_of(dense, of, tmp_path), half(of), method).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for index, site in enumerate(of):
            log_alpha = projection(trained, site).gates.log_alpha
            noise = torch.randn(log_alpha.shape, generator=generator)
            log_alpha.copy_(3 * noise - 4 * (index % 2))
    return LearnedPlan(dense, trained, of, table_of(of), method.sparsity, [])


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_the_extracted_model_gives_what_the_gated_one_gives(family, tmp_path):
    """At the gates' own ranks, where some projections are whole again and some are not."""
    dense = EVERY[family]()
    plan = plan_of(dense, tmp_path, room=2.0)
    shapes = plan._exact(0.0)
    assert {rank == site.whole for site, rank in shapes.items()} == {True, False}
    pruned, allocation = plan.build(shapes)
    for site, keep in allocation.items():
        module = projection(pruned, site)
        assert isinstance(module, LowRank) == (shapes[site] != site.whole)
        assert int(keep.sum()) == shapes[site].units
    for batch in BATCHES:
        given = {"input_ids": batch.ids, "attention_mask": batch.mask}
        real = batch.mask.bool() if family in FAMILIES else slice(None)
        theirs = plan.trained(**given).logits[real]
        torch.testing.assert_close(pruned(**given).logits[real], theirs, rtol=1e-4, atol=1e-5)


def test_a_budget_is_met_by_ranks_that_the_table_offers(tmp_path):
    plan = plan_of(llama(), tmp_path)
    before = None
    for budget in (15.0, 10.0, 6.0):
        shapes = plan.choose(budget)
        assert shapes is not None
        assert plan.table.total(shapes) <= budget
        assert all(rank in plan.table.levels(site) for site, rank in shapes.items())
        # the largest that fits: with every gate a little more open it does not
        assert before is None or all(rank.contains(shapes[s]) for s, rank in before.items())
        before = shapes
    assert plan.choose(1.5) is None


@pytest.mark.parametrize("sparsity", [0.2, 0.5])
def test_a_sparsity_is_met(sparsity, tmp_path):
    dense = llama()
    plan = plan_of(dense, tmp_path, sparsity=sparsity)
    pruned, _ = plan.build(plan.fixed_shapes)
    whole = sum(weight(projection(dense, site)).numel() for site in plan.gated)
    total = [sum(p.numel() for p in model.parameters()) for model in (dense, pruned)]
    assert (total[0] - total[1]) / whole == pytest.approx(sparsity, abs=0.01)


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_at_full_rank_training_starts_from_the_dense_model(family, tmp_path):
    dense = EVERY[family]()
    method = flop()
    of = method.sites(dense)
    whole = {site: site.whole for site in of}
    gated = gated_(deepcopy(dense), moments_of(dense, of, tmp_path), whole, method).eval()
    for batch in BATCHES:
        given = {"input_ids": batch.ids, "attention_mask": batch.mask}
        torch.testing.assert_close(
            gated(**given).logits, dense(**given).logits, rtol=1e-3, atol=1e-4
        )


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_gated_model_comes_back_from_its_parameters(family, tmp_path):
    dense, method = FAMILIES[family](), flop()
    of = method.sites(dense)
    gated = gated_(deepcopy(dense), moments_of(dense, of, tmp_path), half(of), method).eval()
    for parameter in gated.parameters():
        parameter.add_(0.01)  # everything was trained
    again = deepcopy(dense)
    restored_(again, of, dict(gated.named_parameters()), method)
    ids = BATCHES[0].ids
    assert torch.equal(again.eval()(input_ids=ids).logits, gated(input_ids=ids).logits)


CASTS = {
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float16": lambda model: model.half(),
    "float64": lambda model: model.double(),
    "own": lambda model: own(model, torch.bfloat16),
}


@torch.no_grad()
@pytest.mark.parametrize("embedding", [Embedding.none, Embedding.adaptive])
@pytest.mark.parametrize("cast", CASTS)
def test_gates_stay_exact_in_a_model_of_any_type(cast, embedding, tmp_path):
    """Their ranks, what these save, and their parameters on disk."""
    dense, method = llama(), flop(sparsity=0.5, embedding=embedding, clusters=[0.1, 0.5])
    of, ranks, tokens = method.sites(dense), half(method.sites(dense)), None
    if embedding is not Embedding.none:
        tokens = Tokens.from_batches(BATCHES, dense, method.ends())
        ranks |= dict.fromkeys(tokens.sizes, Width(12))
    model = gated_(deepcopy(dense), moments_of(dense, of, tmp_path), ranks, method, tokens)
    generator = torch.Generator().manual_seed(4)
    expected = {}
    for site in ranks:
        log_alpha = product(model, site).gates.log_alpha
        log_alpha.copy_(3 * torch.randn(log_alpha.shape, generator=generator))
        expected[site] = (1 / (1 + (-log_alpha.double() - math.log(11)).exp())).sum()
    before = {site: product(model, site).gates.log_alpha.clone() for site in ranks}
    model = CASTS[cast](model).eval()
    assert model.dtype is not torch.float32
    cost = Cost.from_table(table_of(list(ranks)), list(ranks))
    saved = cost.saved({site: product(model, site).gates.rank() for site in ranks})
    assert float(saved) == pytest.approx(float(cost.saved(expected)), abs=1e-6)
    save_parameters(model, tmp_path)
    state = load_file(tmp_path / "parameters.safetensors")
    again = CASTS[cast](deepcopy(dense))
    restored_(again, list(ranks), state, method, tokens)
    for each in (model, again.eval()):
        for site in ranks:
            gates = product(each, site).gates
            assert torch.equal(gates.log_alpha, before[site])
            assert gates.log_alpha.dtype is torch.float32
            assert float(gates.rank().detach()) == pytest.approx(float(expected[site]), rel=1e-6)
    theirs = dict(again.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in model.named_parameters())
    logits = model(input_ids=BATCHES[0].ids).logits
    assert logits.dtype is model.dtype
    assert logits.isfinite().all()
    cut = CASTS[cast](deepcopy(dense))
    plan = LearnedPlan(cut, model, list(ranks), table_of(list(ranks)), None, [])
    shapes = plan._exact(0.0)
    for site, rank in shapes.items():
        assert rank.units in (site.units, round(float(expected[site])))
    pruned, _ = plan.build(shapes)
    assert {p.dtype for p in pruned.parameters()} == {model.dtype}


def test_many_gates_in_bfloat16_are_counted_one_by_one():
    log_alpha = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    gated = GatedLowRank(torch.zeros(3000, 2), torch.zeros(2, 3000), None,
                         Gates(log_alpha, 1.0, True)).bfloat16()  # fmt: skip
    expected = (1 / (1 + (-log_alpha.double() - math.log(11)).exp())).sum()
    assert float(gated.gates.rank().detach()) == pytest.approx(float(expected), abs=1e-2)
    assert int((gated.gates.fixed() > 0).sum()) == round(float(expected))


@pytest.mark.job
def test_what_training_of_a_bfloat16_model_learned_is_what_its_plan_counts(tmp_path):
    dense = llama().to(torch.bfloat16)
    method = flop(sparsity=0.4, steps=4)
    search = Spdy(
        "spdy", Objective.kl, tokens=24, sequence_length=[12], steps=0, mutation=0.1, inits=1
    )
    options = Calibration("tiny", weight=Weight.none, sequence_length=12, held_out=0.3)
    context = pruning_context(dense, BATCHES, search, job_with(Cache(tmp_path)), options)
    plan = method.plan(replace(context, table=table_of(method.sites(dense)), speedup=None))
    assert isinstance(plan, LearnedPlan)
    (path,) = tmp_path.glob("training/*/parameters.safetensors")
    state = load_file(path)
    for site, module in plan.gated.items():
        log_alpha = state[f"model.layers.{site.block}.{site.module}.gates.log_alpha"]
        assert log_alpha.dtype is torch.float32
        assert torch.equal(module.gates.log_alpha, log_alpha)
        assert module.A.dtype is torch.bfloat16


def trained(directory: Path, moments: Path, **values):
    dense, method = llama(), flop(**values)
    of = method.sites(dense)
    model = gated_(dense, moments_of(dense, of, moments), half(of), method)
    sizes = {s: (len(projection(model, s).B), projection(model, s).A.shape[1]) for s in of}
    goal = Goal(Cost.from_table(counts(sizes, table_of(of)), of), 0.5, 6)
    history = train(model, goal, method, BATCHES, 0, directory)
    return model, history


@pytest.mark.job
def test_training_lowers_the_loss_and_saves_more(tmp_path):
    _, history = trained(tmp_path / "run", tmp_path, steps=60)
    assert history[-1]["step"] == 60
    assert history[-1]["saved"] > history[0]["saved"] + 0.1
    assert history[-1]["target"] == 0.5
    assert {"loss", "multiplier_linear", "multiplier_quadratic"} <= history[0].keys()


@pytest.mark.job
def test_an_encoder_is_trained_on_the_labels_of_its_task(tmp_path):
    dense, method = ENCODERS["bert"](), flop(steps=40)
    labelled = [replace(b, labels={"labels": b.ids[:, 0] % 3}) for b in BATCHES]
    of = method.sites(dense)
    model = gated_(deepcopy(dense), moments_of(dense, of, tmp_path), half(of), method)
    goal = Goal(Cost.from_table(table_of(of), of), 0.5, 8)
    history = train(model, goal, method, labelled, 0, tmp_path / "run")
    assert history[-1]["task_loss"] < 0.3 * history[0]["task_loss"]
    assert history[-1]["saved"] > history[0]["saved"] + 0.02


@pytest.mark.job
def test_a_killed_training_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    whole, history = trained(tmp_path / "whole", tmp_path)

    class Killed(BaseException):
        """As good as kill -9 for what is on disk: nothing catches it."""

    from pruning.methods.flop.training import GateTrainer

    normal = GateTrainer.compute_loss

    def dies(self, *args, **kwargs):
        if self.state.global_step == 9:
            raise Killed
        return normal(self, *args, **kwargs)

    monkeypatch.setattr(GateTrainer, "compute_loss", dies)
    with pytest.raises(Killed):
        trained(tmp_path / "half", tmp_path)
    monkeypatch.setattr(GateTrainer, "compute_loss", normal)
    newest = tmp_path / "half" / "checkpoint-11"
    newest.mkdir()
    (newest / "trainer_state.json").write_text("{")  # cut short by the kill: not used
    again, rest = trained(tmp_path / "half", tmp_path)
    assert [row["step"] for row in rest] == [row["step"] for row in history]
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.job
def test_numbers_that_are_not_finite_stop_before_the_step(tmp_path):
    with pytest.raises(ValueError, match=r"^method\.learning_rate=.* at step \d+; lower it"):
        trained(tmp_path / "run", tmp_path, learning_rate=1e30, save_steps=1)
    kept = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert kept
    for path in kept:
        assert all(t.isfinite().all() for t in load_file(path / "model.safetensors").values())
