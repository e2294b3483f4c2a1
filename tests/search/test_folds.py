"""Folds against least squares on hooked inputs, and trials that have them against whole models."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from pruning.calibration.calibration import Stored
from pruning.calibration.moment import Moment, Split
from pruning.calibration.moments import Moments
from pruning.methods.ziplm import Score
from pruning.models.gaps import writers
from pruning.models.loaded import LoadedModel
from pruning.models.sites import Kind, projection, sites, weight
from pruning.search.fisher import _taken_over, fisher_losses
from pruning.search.options import Objective
from pruning.search.problem import build_problem, calibrate_priors
from pruning.search.search import Calibrated, Uniform
from pruning.search.trial import CandidateEvaluator
from pruning.solver.folds import Folds, best_fold
from pruning.system.cache import Cache
from pruning.system.precision import Precision
from tests.helpers.data import lstsq
from tests.helpers.families import FAMILIES, ROUTING, bert, gemma2
from tests.helpers.observed import observed
from tests.helpers.tiny import (
    job_with,
    linear_table,
    padded_batches,
    pruning_context,
    solve_levels,
    text,
    word_tokenizer,
    ziplm,
)
from tests.search.test_trial import OUTPUTS, masked, reference

BATCHES = padded_batches(count=9)
FIT = [batch for batch in BATCHES if not batch.held_out]
HELD_OUT = [batch for batch in BATCHES if batch.held_out]
RIDGE = 0.1
SERIAL = ["llama", "gpt2", "opt", "granite"]


def folds_of(model, directory, ridges=(RIDGE,)) -> Folds:
    dense, cache = LoadedModel(model, word_tokenizer()), Cache(directory)
    moments = Moments.collect(dense, BATCHES, text(), sites(model), cache)
    return Folds.collect(dense, BATCHES, text(), ridges, moments, cache)


@pytest.fixture(params=["llama", "gpt2", "opt", "gpt_neox"], scope="module")
def case(request, tmp_path_factory):
    """Give a family, a model of it, and levels with dense weights and folds."""
    model, directory = FAMILIES[request.param](), tmp_path_factory.mktemp(request.param)
    table = linear_table(model, 8)
    levels = solve_levels(model, BATCHES, directory / "moments", table, ridges=(float("inf"),))
    levels.folds = folds_of(model, directory)
    return request.param, model, levels


@torch.no_grad()
@pytest.mark.parametrize("family", [*SERIAL, "gpt_neox", "mixtral"])
def test_a_fold_is_the_least_squares_of_what_is_gone(family, tmp_path):
    model = FAMILIES[family]()
    folds = folds_of(model, tmp_path)
    removable = sum(site.removable for site in sites(model))
    experts = {"mixtral": 2}.get(family, 0)  # in front of attention: they take over nothing
    assert len(folds.writers) == removable - experts >= 3
    rows = observed(model, FIT)
    for site, writer in folds.writers.items():
        W, X = weight(projection(model, writer)).double(), rows[writer].X
        bias, live = getattr(projection(model, site), "bias", None), X.any(0)
        missing = rows[site].Y if bias is None else rows[site].Y + bias.double()
        expected = lstsq(W, X, live, RIDGE, X @ W.T + missing) - W[:, live]
        F = folds[site].double()  # stored in bfloat16
        torch.testing.assert_close(F[:, live], expected, rtol=1e-2, atol=2e-3)
        left = (X @ F.T - missing).square().sum() / missing.square().sum()
        assert left < 0.9


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_a_fold_has_the_ridge_that_leaves_least_of_held_out_outputs(family, tmp_path):
    model, ridges = FAMILIES[family](), (0.01, 0.1, 1.0, float("inf"))
    rows = observed(model, HELD_OUT)
    chosen = folds_of(model, tmp_path / "chosen", ridges)
    alone = [folds_of(model, tmp_path / str(ridge), [ridge]) for ridge in ridges]
    for site, writer in chosen.writers.items():
        bias = projection(model, site).bias
        gone = rows[site].Y if bias is None else rows[site].Y + bias.double()
        for folds in (chosen, *alone):
            left = rows[writer].X @ folds[site].double().T - gone  # F as stored, in bfloat16
            expected = float(left.square().sum() / gone.square().sum())
            assert folds.error(site) == pytest.approx(expected, rel=2e-3, abs=2e-3)
        assert chosen.error(site) == min(folds.error(site) for folds in alone)
    assert all(alone[-1].error(site) == pytest.approx(1) for site in chosen.writers)


@pytest.mark.parametrize("family", SERIAL)
def test_what_writes_in_front_of_a_site_takes_it_over(family):
    model = FAMILIES[family]()
    places = {(w.block, w.kind): (s.block, s.kind) for s, w in writers(model).items()}
    for block in range(len(sites(model)) // 2):
        assert places[block, Kind.ATTENTION] == (block, Kind.FFN)
    assert places[0, Kind.FFN] == (1, Kind.ATTENTION)


def test_of_parallel_sub_blocks_each_takes_over_the_other():
    model = FAMILIES["gpt_neox"]()
    for site, writer in writers(model).items():
        assert site.block == writer.block
        assert site.kind is not writer.kind


@pytest.mark.parametrize("family", ROUTING)
def test_experts_are_taken_over_and_take_over_nothing(family):
    by = writers(FAMILIES[family]())
    assert any(site.kind is Kind.EXPERTS for site in by)
    assert not any(writer.kind is Kind.EXPERTS for writer in by.values())


@pytest.mark.parametrize("make", [bert, gemma2])
def test_nothing_takes_over_what_a_norm_reads_first(make):
    assert writers(make()) == {}


def test_held_out_moments_that_are_taken_again_give_the_same_folds(tmp_path):
    model = FAMILIES["llama"]()
    dense, ridges, made = LoadedModel(model, word_tokenizer()), (0.1, 1.0), []
    for stored in (Stored.both, Stored.fit):
        given, cache = text(), Cache(tmp_path / stored)
        given.stored = stored
        moments = Moments.collect(dense, BATCHES, given, sites(model), cache)
        assert (moments.retaken is None) is (stored is Stored.both)
        made.append(Folds.collect(dense, BATCHES, given, ridges, moments, cache))
    for site in made[0].writers:
        assert torch.equal(*(folds[site] for folds in made))
        assert made[0].error(site) == made[1].error(site)


def test_what_is_the_same_map_of_the_same_inputs_leaves_next_to_nothing():
    """Of the numbers that say so nothing but rounding is left: a prior is above zero."""
    generator = torch.Generator().manual_seed(0)
    X, W = (torch.randn(n, 8, generator=generator) for n in (200, 5))
    both = [
        Moment(rows.T @ rows / len(rows), rows.mean(0), (rows @ W.T).T @ rows / len(rows))
        for rows in (X[:150], X[150:])
    ]
    F, ridge, left = best_fold(Split(*both, 0.25), [0.0, 0.1, float("inf")])
    assert ridge == 0
    torch.testing.assert_close(F, W, rtol=1e-4, atol=1e-4)
    energy = float((X[150:] @ W.T).square().sum(1).mean())
    assert left / energy == pytest.approx(-1, abs=1e-5)


def test_folds_of_blocks_that_are_solved_are_not_solved_again(tmp_path, monkeypatch):
    """A killed job goes on at the block where it was."""
    model = FAMILIES["llama"]()
    whole, solved = folds_of(model, tmp_path / "whole"), []
    write = Folds._write

    def killed(self, index, *given):
        if index == 2 and len(solved) == 2:
            raise KeyboardInterrupt
        solved.append(index)
        write(self, index, *given)

    monkeypatch.setattr(Folds, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        folds_of(model, tmp_path / "killed")
    solved.append("again")
    again = folds_of(model, tmp_path / "killed")
    assert solved == [0, 1, "again", 2]
    assert all(torch.equal(whole[site], again[site]) for site in whole.writers)


@torch.no_grad()
def folded(family, model, levels, choice):
    """Return a copy with zeros for what is gone, and what takes it over."""
    copy = masked(family, model, levels, choice)
    layers, *paths = OUTPUTS[family]
    for (site, of), level in zip(levels.items(), choice, strict=True):
        if of.keeps[level].any() or site not in levels.folds.writers:
            continue
        writer = levels.folds.writers[site]
        path = dict(zip((Kind.ATTENTION, Kind.FFN), paths, strict=True))[writer.kind]
        module = copy.get_submodule(layers)[writer.block].get_submodule(path)
        F = levels.folds[site].float()
        module.weight += F.T if family == "gpt2" else F  # Conv1D stores [inputs, outputs]
    return copy


def last(levels):
    """Return the level of which nothing is left, of every site."""
    return [len(of.shapes) - 1 for of in levels.values()]


def foldable(levels):
    """Return that level of every site that something takes over, none of the others."""
    pairs = zip(levels, last(levels), strict=True)
    return [[level] if site in levels.folds.writers else [] for site, level in pairs]


def test_losses_with_folds_are_those_of_whole_models(case):
    family, model, levels = case
    dense, gone = FAMILIES[family](), last(levels)
    choices = [gone, [0, 0, gone[2], gone[3], 1, 0], [0, gone[1], gone[2], 1, gone[4], gone[5]]]
    with CandidateEvaluator(model, levels, BATCHES, Objective.kl) as trial:
        for choice in choices:
            expected = reference(
                Objective.kl, dense, folded(family, dense, levels, choice), BATCHES
            )
            plain = reference(Objective.kl, dense, masked(family, dense, levels, choice), BATCHES)
            assert trial.evaluate(choice) == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert expected != pytest.approx(plain, rel=0.01)
        places = foldable(levels)
        losses = trial.sensitivities(places)
    for index, at in enumerate(places):
        for level in at:
            choice = [level if i == index else 0 for i in range(len(gone))]
            whole = folded(family, dense, levels, choice)
            expected = reference(Objective.kl, dense, whole, BATCHES)
            assert losses[index][level] == pytest.approx(expected, rel=1e-4, abs=2e-4)


def test_weights_are_back_bit_by_bit_behind_folds(case):
    _, model, levels = case
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with CandidateEvaluator(model, levels, BATCHES[:1], Objective.kl) as trial:
        trial.evaluate(last(levels))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_an_estimate_sees_what_is_given_instead(case):
    """By hand: F x at every place, x hooked in the dense model."""
    family, model, levels = case
    layers, *paths = OUTPUTS[family]
    with CandidateEvaluator(model, levels, FIT[:1], Objective.kl) as trial:
        entering = [[state.hidden for state in trial.states]]
        for index in range(len(levels) // 2):
            entering.append(trial.behind(index, entering[-1]))
        for place, site in enumerate(levels):
            if site not in levels.folds.writers:
                continue
            writer = levels.folds.writers[site]
            path = dict(zip((Kind.ATTENTION, Kind.FFN), paths, strict=True))[writer.kind]
            module, seen = model.get_submodule(layers)[writer.block].get_submodule(path), []
            hook = module.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
            model(input_ids=FIT[0].ids, attention_mask=FIT[0].mask)
            hook.remove()
            (given,) = _taken_over(trial, place, entering)
            expected = seen[0] @ levels.folds[site].float().T
            real = FIT[0].mask.bool()
            given, expected = (one.view(*real.shape, -1) for one in (given, expected))
            torch.testing.assert_close(given[real], expected[real], rtol=1e-4, atol=1e-4)


def test_estimates_with_folds_are_near_measured_losses(case):
    _, model, levels = case
    places = foldable(levels)
    with CandidateEvaluator(model, levels, BATCHES, Objective.kl) as trial:
        measured = trial.sensitivities(places)
        estimated = fisher_losses(trial, places, 200)
    for index, at in enumerate(places):
        for level in at:  # of second order, for changes that are not small
            assert 0.3 < estimated[index][level] / measured[index][level] < 3


def test_what_is_gone_is_measured_with_its_fold_alone(case, tmp_path):
    """What the fold leaves of the output is its prior, so levels before it learn from its loss."""
    _, model, levels = case
    places, bare = foldable(levels), copy(levels)
    bare.folds = None
    with CandidateEvaluator(model, levels, BATCHES, Objective.kl) as trial:
        problem = build_problem(levels, linear_table(model, 8), trial, Cache(tmp_path))
        rows, measured = problem.losses([0.5, 0.0]), problem.sensitivities([0.5, 0.0])
        folded = trial.sensitivities(places)
    with CandidateEvaluator(model, bare, BATCHES, Objective.kl) as trial:
        plain = trial.sensitivities([[gone] for gone in last(levels)])
    for place, (site, of) in enumerate(levels.items()):
        gone, prior = len(of.shapes) - 1, np.array(of.loss)
        expected = plain[place][gone]
        if places[place]:
            assert folded[place][gone] != pytest.approx(expected, rel=1e-3)
            prior[gone], expected = levels.folds.error(site), folded[place][gone]
        assert measured[place][gone] == pytest.approx(expected, rel=1e-6)
        (half,) = set(measured[place]) - {gone}
        assert measured[place][half] > 0
        assert rows[place] == pytest.approx(calibrate_priors(prior, measured[place]))
        assert rows[place][gone] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "search", "compensates", "has_folds"),
    [
        (FAMILIES["llama"], Calibrated(tokens=40, precision=Precision.float32), True, True),
        (FAMILIES["llama"], Calibrated(tokens=40, precision=Precision.float32), False, False),
        (FAMILIES["llama"], Uniform(), True, False),  # it measures nothing
        (gemma2, Calibrated(tokens=40, precision=Precision.float32), True, False),
    ],
)
def test_a_method_that_compensates_searches_with_folds(
    make, search, compensates, has_folds, tmp_path
):
    model, method = make(), replace(ziplm(Score.obs, [RIDGE]), compensate=compensates)
    context = pruning_context(model, BATCHES, search, job_with(Cache(tmp_path)))
    plan = method.plan(context)
    assert (plan.levels.folds is not None) is has_folds
    assert plan.compensate is (compensates and bool(writers(model)))  # else nothing is a draft
    assert (tmp_path / "folds").exists() is has_folds
    costs = method.cost(model, 100, context.calibration.options, search)
    assert costs.get("folds", 0) == (100 if has_folds else 0)
    assert next(iter(costs)) == "moments"
    assert list(costs)[-1] == "prune"
