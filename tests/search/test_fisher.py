"""Estimated losses against divergences of the transformers model, changed a little by hooks."""

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from pruning.models.sites import Kind
from pruning.search.fisher import fisher_losses
from pruning.search.options import Objective, Sensitivity
from pruning.search.problem import build_problem
from pruning.search.search import Calibrated
from pruning.search.trial import CandidateEvaluator
from pruning.system.cache import Cache
from tests.helpers.families import ENCODER, EVERY, random_model
from tests.helpers.tiny import linear_table, padded_batches, solve_levels

BATCHES = padded_batches(2)
GIVEN = {  # family: its blocks, and what adds to the stream in a block: by attention, by the FFN
    "llama": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "gemma3": ("model.layers", "post_attention_layernorm", "post_feedforward_layernorm"),
    "bert": ("bert.encoder.layer", "attention.output.LayerNorm", "output.LayerNorm"),
}
SMALL = 0.03  # share of a change, so that the divergence is one of second order


@pytest.fixture(params=GIVEN, scope="module")
def case(request, tmp_path_factory):
    model = EVERY[request.param]().eval()
    directory = tmp_path_factory.mktemp(request.param)
    levels = solve_levels(model, BATCHES, directory, linear_table(model, 8), ridges=(0.1,))
    return request.param, model, levels


def module(family, model, site):
    """Return what gives the output of a sub-block, by transformers' own names."""
    layers, attention, ffn = GIVEN[family]
    path = attention if site.kind is Kind.ATTENTION else ffn
    return model.get_submodule(layers)[site.block].get_submodule(path)


@torch.no_grad()
def logits(model, batch):
    """Return float64 logits of every real token, or of every row of a classifier."""
    z = model(input_ids=batch.ids, attention_mask=batch.mask).logits.double()
    return z[batch.mask.bool()] if z.dim() == 3 else z


def output_of(family, model, site, batch):
    """Return what a sub-block gives for a batch."""
    seen = []
    hook = module(family, model, site).register_forward_hook(lambda m, a, out: seen.append(out))
    logits(model, batch)
    hook.remove()
    return seen[0].detach().reshape(*batch.ids.shape, -1)


def divergence_of(family, model, site, batch, change):
    """Return sum KL(p || p') where the sub-block gives `change` more."""
    before = logits(model, batch).log_softmax(-1)
    hook = module(family, model, site).register_forward_hook(
        lambda m, a, out: out + change.reshape(out.shape).to(out)
    )
    after = logits(model, batch).log_softmax(-1)
    hook.remove()
    return float((before.exp() * (before - after)).sum())


@contextmanager
def installed(trial, place, level):
    """Let a site have a level for a while."""
    trial.install(place, level)
    yield
    trial.install(place, 0)


def single(real):
    """Return a mask for each real token."""
    return [torch.zeros_like(real).index_put((r, t), real[r, t]) for r, t in real.nonzero()]


def test_losses_are_divergences_of_small_changes(case):
    """Each token changed alone, in a decoder; all tokens of a row at once, in an encoder."""
    family, model, levels = case
    batch = BATCHES[0]
    rows = family == "bert"
    with CandidateEvaluator(model, levels, [batch], Objective.kl) as trial:
        chosen = [[len(of.shapes) // 2, len(of.shapes) - 1] for of in levels.values()]
        found = fisher_losses(trial, chosen, 3000)
        sites = [0, len(trial.sites) - 1]  # attention of the first block, and what comes last
        for place in sites:
            site = trial.sites[place]
            before = output_of(family, model, site, batch)
            for level, loss in found[place].items():
                with installed(trial, place, level):
                    change = output_of(family, model, site, batch) - before
                real = batch.mask.bool()
                apart = [real] if rows else single(real)
                parts = [SMALL * change * where[:, :, None] for where in apart]
                total = sum(divergence_of(family, model, site, batch, part) for part in parts)
                total /= SMALL**2
                count = len(batch.ids) if rows else int(batch.mask.sum())
                assert loss == pytest.approx(total / count, rel=0.1)
    assert all(installed == (0, []) for installed in trial.installed)


def test_a_regression_has_the_squared_difference(tmp_path):
    """One number a row: nothing is drawn, so the estimate is exact for a small change."""
    model = random_model(
        BertConfig(**(ENCODER | {"num_labels": 1})), AutoModelForSequenceClassification
    )
    levels = solve_levels(model, BATCHES, tmp_path, linear_table(model, 8), ridges=(0.1,))
    batch = BATCHES[0]
    with CandidateEvaluator(model, levels, [batch], Objective.kl) as trial:
        site = trial.sites[1]
        loss = fisher_losses(trial, [[], [1], *[[]] * (len(trial.sites) - 2)], 1)[1][1]
        before, start = output_of("bert", model, site, batch), logits(model, batch)
        with installed(trial, 1, 1):
            change = 1e-3 * (output_of("bert", model, site, batch) - before)
        hook = module("bert", model, site).register_forward_hook(lambda m, a, out: out + change)
        moved = (logits(model, batch) - start) / 1e-3
        hook.remove()
    assert loss == pytest.approx(float(moved.square().mean()), rel=1e-2)


def test_a_search_has_them_from_the_cache(case, tmp_path):
    _, model, levels = case
    table = linear_table(model, 8)
    cache = Cache(tmp_path / "cache")
    search = Calibrated(sensitivity=Sensitivity.fisher, draws=50, tokens=30, predictions=20)
    with search.trial(model, levels, [replace(b, held_out=True) for b in BATCHES]) as trial:
        problem = build_problem(levels, table, trial, cache)
        choose = search.prepare(problem, table.budget(1.5))
        measured = problem.sensitivities(search.anchors)
        estimated = problem.sensitivities(search.anchors, search.draws)
        choice = choose(table.budget(1.5))
    assert choice is not None
    assert problem.total(choice) <= table.budget(1.5) * (1 + 1e-9)
    assert len([*(tmp_path / "cache" / "sensitivities").glob("*/manifest.json")]) == 2
    for one, other in zip(measured, estimated, strict=True):
        assert one.keys() == other.keys()
        assert all(math.isfinite(loss) and loss >= 0 for loss in other.values())


def test_it_estimates_divergences_only():
    with pytest.raises(
        ValueError, match=r"^search\.sensitivity=fisher .* search\.objective=kl, or"
    ):
        Calibrated(sensitivity=Sensitivity.fisher, objective=Objective.task)
    plain, cheap = Calibrated(), Calibrated(sensitivity=Sensitivity.fisher)
    assert cheap.cost([], 1)["sensitivities"] == 4 * cheap.tokens
    assert plain.cost([], 1)["sensitivities"] == 0
