"""Experts: what is known of each, which leave, what their channels become, and who is chosen."""

from copy import deepcopy
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pruning.calibration.calibration import Weight
from pruning.calibration.moments import Moments
from pruning.calibration.passes import collect
from pruning.latency.grid import Levels as Costs
from pruning.latency.grid import experts as expert_grid
from pruning.latency.grid import heads, monotone
from pruning.latency.table import LatencyTable
from pruning.methods.baselines import Magnitude
from pruning.methods.slimgpt import SlimGPT
from pruning.methods.ziplm import ExpertScore, Score
from pruning.models.shape import Experts
from pruning.models.shrink import copy_sharing_weights, mask_, shrink_
from pruning.models.sites import Kind, blocks, shape, sites
from pruning.search.options import Objective
from pruning.search.problem import build_problem
from pruning.search.trial import CandidateEvaluator
from pruning.solver.experts import ExpertSite, expert_levels, losses_without
from pruning.solver.levels import Levels
from pruning.solver.obs import least_squares
from pruning.system.cache import Cache
from tests.helpers.families import EVERY, ROUTING, mixtral, qwen3_moe
from tests.helpers.tiny import INF, linear_table, padded_batches, ziplm

BATCHES = padded_batches()


@pytest.fixture(params=ROUTING, scope="module")
def case(request, tmp_path_factory):
    """Give a model and its moments."""
    model = EVERY[request.param]()
    return model, moments_of(model, tmp_path_factory.mktemp(request.param), Weight.residual)


def moments_of(model, directory, weight=Weight.none):
    directory.mkdir(exist_ok=True)
    moments = Moments(directory)
    for index, block in enumerate(collect(model, BATCHES, weight, sites(model))):
        moments.write(index, block)
    return moments


def expert_sites(model):
    return [site for site in sites(model) if site.kind is Kind.EXPERTS]


@torch.no_grad()
def routed_by_hand(model, index):
    """Yield for every real token and expert: batch, expert, gate, what is read and given."""
    experts = blocks(model)[index].mlp.experts
    inputs = []
    handle = blocks(model)[index].mlp.register_forward_pre_hook(
        lambda _, args: inputs.append(args[0].flatten(0, 1))
    )
    for batch in BATCHES:
        model(input_ids=batch.ids, attention_mask=batch.mask)
    handle.remove()
    normed = getattr(model.config, "norm_topk_prob", True)
    for batch, hidden in zip(BATCHES, inputs, strict=True):
        for x in hidden[batch.mask.flatten().bool()].double():
            p = (blocks(model)[index].mlp.gate.weight.double() @ x).softmax(0)
            gates, chosen = p.topk(2)
            gates = gates / gates.sum() if normed else gates
            for g, e in zip(gates.tolist(), chosen.tolist(), strict=True):
                gate, up = (experts.gate_up_proj[e].double() @ x).chunk(2)
                inner = F.silu(gate) * up
                yield batch, e, g, inner, experts.down_proj[e].double() @ inner


def test_reap_and_moments_are_those_of_the_routed_tokens(case, tmp_path):
    """By hand: one token after the other, in float64, from the router's own rows."""
    model, _ = case
    moments = moments_of(model, tmp_path)
    site = expert_sites(model)[1]
    gains, H, mass = {}, {}, {}
    for batch, e, g, inner, out in routed_by_hand(model, 1):
        gains.setdefault(e, []).append(g * float(out.norm()))
        key = e, batch.held_out
        H[key] = H.get(key, 0) + g**2 * torch.outer(inner, inner)
        mass[key] = mass.get(key, 0) + g**2
    routed = moments.routed(site, torch.device("cpu"))
    expected = torch.tensor([float(np.mean(gains.get(e, [0]))) for e in range(6)])
    torch.testing.assert_close(routed.reap, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(routed.reap.argsort(), expected.argsort())
    counts = torch.tensor([float(len(gains.get(e, []))) for e in range(6)])
    assert torch.equal(routed.counts.sum(0), counts)
    assert counts.sum() == 2 * sum(batch.tokens for batch in BATCHES)
    for index, one in enumerate(site.each):
        split = moments[one]
        for moment, held in ((split.fit, False), (split.held, True)):
            wanted = H.get((index, held), torch.zeros_like(moment.H)) / mass.get((index, held), 1)
            torch.testing.assert_close(moment.H, wanted.float(), rtol=1e-3, atol=1e-5)
    assert len(routed.fit.inputs) + len(routed.held.inputs) == sum(b.tokens for b in BATCHES)


def test_a_sample_is_spread_over_the_batches(monkeypatch, tmp_path):
    monkeypatch.setattr("pruning.calibration.routed.SAMPLE", 10)
    model = qwen3_moe()
    routed = moments_of(model, tmp_path).routed(expert_sites(model)[0], torch.device("cpu"))
    held = sum(batch.held_out for batch in BATCHES)
    assert len(routed.held.inputs) == held * -(-10 // held)
    assert bool((routed.fit.weights > 0).all())


@torch.no_grad()
def test_the_loss_without_an_expert_is_that_of_a_router_that_never_chooses_it(case):
    model, moments = case
    site = expert_sites(model)[0]
    found = losses_without(ExpertSite(model, site, moments))
    sample = moments.routed(site, torch.device("cpu")).fit
    dense = blocks(model)[0].mlp(sample.inputs[None])[0]
    w = sample.weights[:, None]
    for index in range(6):
        keep = torch.ones(6, site.units // 6, dtype=torch.bool)
        keep[index] = False
        left = mask_(deepcopy(model), {site: keep.flatten()})
        y = blocks(left)[0].mlp(sample.inputs[None])[0]
        expected = float((w * (y - dense).square()).sum() / (w * dense.square()).sum())
        assert float(found[index]) == pytest.approx(expected, rel=1e-3, abs=1e-7)


def shapes_of(site):
    return expert_grid(site.groups, site.units // site.groups, site.least, 1)


@pytest.mark.parametrize("order", ExpertScore)
def test_levels_keep_what_their_shapes_say_and_lose_what_is_measured(case, order):
    """The experts and channels of a level lie in those of every level that contains it."""
    model, moments = case
    site = expert_sites(model)[0]
    method, given = ziplm(Score.obs, [0.1, INF]), ExpertSite(model, site, moments)
    method.experts = order
    shapes = shapes_of(site)
    made = expert_levels(given, method, shapes)
    assert [shape(site, keep) for keep in made.keeps] == shapes
    assert made.loss[0] == 0
    assert made.loss[-1] == 1
    assert len(made.ridges) == 6
    by_shape = dict(zip(shapes, made.keeps, strict=True))
    for large, small in product(shapes, shapes):
        if large.contains(small):
            assert bool((by_shape[small] <= by_shape[large]).all())
    scores = method.expert_scores(given)
    narrow = by_shape[Experts(4, site.units // 6)].view(6, -1).any(1)
    assert set(narrow.nonzero().flatten().tolist()) == set(scores.argsort()[2:].tolist())
    sample = moments.routed(site, torch.device("cpu")).held
    with torch.no_grad():
        y = blocks(model)[0].mlp(sample.inputs[None])[0]
        for level in (1, len(shapes) // 2, len(shapes) - 2):
            keep = made.keeps[level]
            left = given.cut(keep.view(6, -1), made.ridges, fit=True)
            error = (left(sample.inputs[None])[0] - y).square().sum(1)
            expected = sample.weights @ error / (sample.weights @ y.square().sum(1))
            assert made.loss[level] == pytest.approx(float(expected), rel=1e-4)


def test_weights_are_least_squares_of_each_expert_s_own_tokens(case, tmp_path):
    model, moments = case
    site = expert_sites(model)[0]
    table = table_of(model, batch=64)
    levels = Levels.from_moments(model, moments, ziplm(Score.obs, [0.1]), table, Cache(tmp_path))
    again = Levels.from_moments(model, moments, ziplm(Score.obs, [0.1]), table, Cache(tmp_path))
    assert again[site].ridge == levels[site].ridge
    assert torch.equal(again[site].keeps, levels[site].keeps)
    width = max(s.width for s in levels[site].shapes if s.width < site.units // 6)
    level = next(i for i, s in enumerate(levels[site].shapes) if s.width == width and s.experts < 6)
    choice = [level if s == site else 0 for s in levels]
    before = [p.detach().clone() for p in model.parameters()]
    pruned, allocation = levels.cut(model, choice)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    keep = allocation[site].view(6, -1)
    for place, index in enumerate(keep.any(1).nonzero().flatten().tolist()):
        H = moments.split(site.each[index], torch.device("cpu")).all.H.double()
        W = blocks(model)[0].mlp.experts.down_proj[index].double()
        expected = least_squares(W, H, keep[index], 0.1).float()
        found = blocks(pruned)[0].mlp.experts.down_proj[place]
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_a_trial_measures_the_model_that_is_cut(case, tmp_path):
    """And puts the dense experts back."""
    model, moments = case
    method = ziplm(Score.obs, [INF])  # weights that stay: those of a cut are those of a trial
    levels = Levels.from_moments(model, moments, method, table_of(model, 64), Cache(tmp_path))
    choice = [len(of.shapes) // 2 for of in levels.values()]
    choice[-1] = len(levels[[*levels][-1]].shapes) - 1  # these are gone
    before = model(input_ids=BATCHES[0].ids).logits
    with CandidateEvaluator(model, levels, BATCHES, Objective.kl) as trial:
        assert trial.evaluate([0] * len(choice)) == pytest.approx(0, abs=1e-6)
        found = trial.evaluate(choice)
    assert torch.equal(model(input_ids=BATCHES[0].ids).logits, before)
    cut, _ = levels.cut(model, choice)
    total, count = 0.0, 0
    for batch in BATCHES:
        real = batch.mask.bool()
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        p, q = (m(**inputs).logits[real].log_softmax(-1) for m in (model, cut))
        total += float((p.exp() * (p - q)).sum())
        count += int(real.sum())
    assert found == pytest.approx(total / count, rel=1e-3)


def test_a_baseline_orders_experts_by_the_scores_of_their_channels(case):
    model, moments = case
    site = expert_sites(model)[0]
    found = Magnitude().expert_scores(ExpertSite(model, site, moments))
    W = blocks(model)[0].mlp.experts.down_proj.detach()
    torch.testing.assert_close(found, W.norm(dim=1).sum(1))


def table_of(model, batch: int) -> LatencyTable:
    """Make a table in which time is what is read: of experts those that some token is routed to."""
    found = {site.kind: site for site in reversed(sites(model))}
    attention, routed = found[Kind.ATTENTION], found[Kind.EXPERTS]
    lattice = heads(attention.groups, attention.heads_per_group)
    of_attention = {h: 1.0 * h.units / attention.units for h in lattice}
    of_experts = {}
    for left in shapes_of(routed):
        n = max(left.experts, 1)
        read = n * (1 - (1 - routed.least / n) ** batch) if left.experts else 0
        of_experts[left] = read * left.width / (routed.units // 6)
    parts: dict[str, Costs] = {
        "attention": monotone(of_attention),
        "experts": monotone(of_experts),
    }
    count = len(blocks(model))
    dense = 1.0 + count * (of_attention[attention.whole] + of_experts[routed.whole])
    return LatencyTable(parts, 1.0, count, 1.0, dense)


def lost(site, left) -> float:
    """Let experts be many and much alike, and all else be dear."""
    if not isinstance(left, Experts):
        return 2 * (1 - left.units / site.units) ** 0.5
    width = site.units // site.groups
    return 0.1 * (1 - left.experts / site.groups) + (1 - left.width / width) if left.units else 4


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("make", [qwen3_moe, mixtral])
def test_a_search_drops_experts_only_where_that_is_faster(make, batch, tmp_path):
    """The same losses, two batches: experts leave at 64, and at 1 what a token reads gets less."""
    model = make(num_hidden_layers=2)
    moments = moments_of(model, tmp_path / "moments")
    table = table_of(model, batch)
    method = ziplm(Score.obs, [0.1, INF])
    levels = Levels.from_moments(model, moments, method, table, Cache(tmp_path / "cache"))
    problem = build_problem(levels, table, None, Cache(tmp_path / "cache"))
    offered = {s for of in levels.values() for s in of.shapes if isinstance(s, Experts) and s.units}
    assert any(s.experts < 6 for s in offered) == (batch == 64)
    budget, draw = table.dense / 1.4, np.random.default_rng(0)
    loss = [
        np.array([lost(site, left) for left in of]) * (1 + 0.1 * draw.random())
        for site, of in zip(problem.sites, problem.shapes, strict=True)
    ]
    choice = problem.solve(loss, budget)
    assert choice is not None
    assert problem.total(choice) <= budget * (1 + 1e-9)
    best = min(
        sum(row[level] for row, level in zip(loss, each, strict=True))
        for each in product(*(range(len(row)) for row in loss))
        if problem.total(each) <= budget
    )
    found = sum(row[level] for row, level in zip(loss, choice, strict=True))
    assert found == pytest.approx(best, rel=1e-3)  # times are rounded up
    left = [problem.shapes[i][level] for i, level in enumerate(choice)]
    fewer = [s for s in left if isinstance(s, Experts) and 0 < s.experts < 6]
    assert bool(fewer) == (batch == 64)
    assert any(s != site.whole for s, site in zip(left, problem.sites, strict=True))


def test_slimgpt_refuses_experts(case):
    with pytest.raises(ValueError, match=r"^method=slimgpt solves one .*: give method=ziplm"):
        SlimGPT().sites(case[0])


@torch.no_grad()
def test_what_was_cut_is_cut_again(case, tmp_path):
    """Blocks of unlike numbers of experts have levels of their own in one table."""
    model, _ = case
    first = expert_sites(model)[0]
    keep = torch.ones(6, first.units // 6, dtype=torch.bool)
    keep[[0, 3]] = False
    once = shrink_(copy_sharing_weights(model), {first: keep.flatten()})
    moments = moments_of(once, tmp_path / "moments")
    table = table_of(model, 64)
    levels = Levels.from_moments(
        once, moments, ziplm(Score.wanda, [INF]), table, Cache(tmp_path / "cache")
    )
    narrower, *others = (levels[site].shapes for site in expert_sites(once))
    assert narrower[0].experts == 4
    assert all(shapes[0].experts == 6 for shapes in others)
    choice = [len(of.shapes) - 2 if s.kind is Kind.EXPERTS else 0 for s, of in levels.items()]
    twice, allocation = levels.cut(once, choice)
    both = keep.flatten().clone()
    both[keep.flatten()] = allocation[expert_sites(once)[0]]
    shapes = {s.block: s.whole for s in expert_sites(twice)}
    assert shape(first, both) == shapes[0] == narrower[-2]


def test_no_level_has_fewer_experts_than_a_token_is_routed_to(case):
    model, _ = case
    site = expert_sites(model)[0]
    offered = [s for s in linear_table(model).levels(site) if s.units]
    assert min(s.experts for s in offered) >= 2
    assert all(s.width % 8 == 0 for s in offered)
