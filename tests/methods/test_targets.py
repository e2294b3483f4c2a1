"""Weights behind pruned blocks, at what share of the dense outputs held-out rows ask for."""

import json
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning import Calibration, Proxy, Text, prune
from pruning.calibration.calibration import Target
from pruning.methods.method import Method, Plan
from pruning.methods.slimgpt import SlimGPT
from pruning.methods.ziplm import Score
from pruning.models.sites import Allocation, projection, sites, weight
from pruning.search.search import Calibrated, Schedule, Search, Uniform
from pruning.system.cache import Cache
from pruning.system.precision import Precision
from tests.helpers.data import lstsq
from tests.helpers.families import FAMILIES, bert, llama
from tests.helpers.observed import masked, observed
from tests.helpers.tiny import (
    INF,
    job_with,
    levels_plan,
    linear_table,
    padded_batches,
    pruning_context,
    solve_levels,
    text,
    word_tokenizer,
    ziplm,
)

BATCHES = padded_batches(count=18)
RIDGES = [0.01, 0.1, 1, INF]
exact = {"precision": Precision.float32}
CASES: dict[str, tuple[Method, Search]] = {
    "ziplm": (
        ziplm(Score.obs, RIDGES),
        Calibrated(tokens=64, repeated=0.0, balances=[1.0], steps=0, **exact),
    ),
    "uniform_ffn": (ziplm(Score.wanda, RIDGES), Uniform()),
    "slimgpt": (SlimGPT(smallest=8, decay=0, ridges=RIDGES), Schedule()),
}

Pair = tuple[float, float]  # ridge and share
Judged = tuple[dict[Pair, float], Pair]  # errors on held-out rows, and what was chosen


@dataclass
class Made:
    """A pruned model, what it kept and how its weights were solved."""

    pruned: PreTrainedModel
    kept: Allocation
    updates: dict[str, Pair]  # by site


def built(plan: Plan, shapes) -> Made:
    pruned, kept = plan.build(shapes)
    updates = {update["site"]: (update["ridge"], update["share"]) for update in plan.updates}
    return Made(pruned, kept, updates)


def made(case: str, model: PreTrainedModel, target: Target, tmp_path, batches=BATCHES) -> Made:
    method, search = CASES[case]
    given = search, job_with(Cache(tmp_path)), text(target)
    context = pruning_context(model, batches, *given)
    plan = method.plan(context)
    shapes = plan.choose(context.table.budget(1.4))
    assert shapes is not None
    return built(plan, shapes)


def solved(W: Tensor, X: Tensor, Y: Tensor, columns: Tensor, ridge: float, share: float) -> Tensor:
    """Solve on rows; the definition. Dead inputs keep their weights."""
    V = W[:, columns].clone()
    if ridge < INF:
        live = X.any(0)
        outputs = torch.lerp(X @ W.T, Y, share)
        V[:, live[columns]] = lstsq(W, X, columns & live, ridge, outputs)
    return V


def check_choices(model: PreTrainedModel, found: Made, batches=BATCHES) -> list[Judged]:
    """Check each choice against all, and the weights; return what was chosen among."""
    judged: list[Judged] = []
    gave = observed(model, batches)
    seen = observed(masked(model, found.pruned, found.kept), batches)
    left = {(site.block, site.kind): site for site in sites(found.pruned)}
    for site, keep in found.kept.items():
        if keep.all() or not keep.any():
            assert site.name not in found.updates
            continue
        columns, W = keep.repeat_interleave(site.width), weight(projection(model, site)).double()
        X, Y, out = seen[site].X, gave[site].Y, seen[site].held_out

        def error(ridge: float, share: float, W=W, X=X, Y=Y, out=out, columns=columns) -> float:
            V = solved(W, X[~out], Y[~out], columns, ridge, share)
            return float((X[out][:, columns] @ V.T - Y[out]).square().sum())

        errors = {
            (ridge, share): error(ridge, share)
            for ridge in RIDGES
            for share in Target.damped.shares
        }
        chosen = found.updates[site.name]
        assert errors[chosen] <= min(errors.values()) * (1 + 1e-4)  # float32 moments
        V = weight(projection(found.pruned, left[site.block, site.kind]))
        expected = solved(W, X, Y, columns, *chosen).float()
        live = X.any(0)[columns]
        torch.testing.assert_close(V[:, live], expected[:, live], rtol=1e-3, atol=5e-4)
        judged.append((errors, chosen))
    return judged


@pytest.mark.job
@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("case", CASES)
def test_no_pair_of_ridge_and_share_is_better_on_held_out_rows(case, family, tmp_path):
    """So on these rows no site is worse than with either target, whatever the ridge."""
    model = FAMILIES[family]()
    found = made(case, model, Target.damped, tmp_path)
    assert len(found.updates) > 2
    check_choices(model, found)


@torch.no_grad()
@pytest.mark.parametrize("family", [bert, llama])
def test_levels_of_encoders_and_decoders_alike(family, tmp_path):
    """The biases of outputs stay as they are, and are no part of a target."""
    model = family()
    levels = solve_levels(model, BATCHES, tmp_path, linear_table(model, 16), tuple(RIDGES))
    plan = levels_plan(model, levels, lambda budget: None, BATCHES, Target.damped, RIDGES)
    middle = {site: one.shapes[len(one.shapes) // 2] for site, one in levels.items()}
    found = built(plan, middle)
    assert len(found.updates) == len(middle)
    check_choices(model, found)
    left = {(site.block, site.kind): site for site in sites(found.pruned)}
    for site in middle:
        before = projection(model, site).bias
        after = projection(found.pruned, left[site.block, site.kind]).bias
        assert before is after is None or torch.equal(before, after)


@pytest.mark.job
@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_where_the_dense_target_overfits_the_ladder_does_not(case, tmp_path):
    """From some 60 tokens, and 64 inputs, a site cannot tell what blocks before it broke."""
    model, few = llama(), padded_batches(count=12, rows=3, sequence=12)
    found = made(case, model, Target.damped, tmp_path, few)
    lost = {Target.local: 0.0, Target.dense: 0.0}
    for errors, chosen in check_choices(model, found, few):
        for target in lost:
            best = min(error for (_, share), error in errors.items() if share in target.shares)
            assert errors[chosen] <= best * (1 + 1e-4)
            lost[target] += best / errors[chosen] - 1
    assert lost[Target.dense] > 0.01
    assert lost[Target.local] > 0.01


@pytest.mark.job
@pytest.mark.parametrize("method", ["ziplm", "uniform_ffn", "slimgpt"])
def test_a_job_records_what_was_chosen(method, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it knows no names of enums
    file = tmp_path / "text.txt"
    file.write_text("\n".join(f"w{i % 90} w{i * i % 97} w{i % 7}" for i in range(600)))
    calibration = Calibration(
        text=Text(str(file)), tokens=512, sequence_length=16, target=Target.damped
    )
    pruned = prune(
        llama(),
        word_tokenizer(),
        method=method,
        speedup=1.25,
        suite="none",
        hardware=Proxy(name="params", counts="parameters", sequence_length=16, alignment=16),
        calibration=calibration,
        cache=tmp_path / "cache",
    )
    result = json.loads((pruned.save(tmp_path / "out") / "result.json").read_text())
    assert result["config"]["calibration"]["target"] == "damped"
    cut = [update["site"] for update in result["updates"]]
    assert cut
    assert len(set(cut)) == len(cut)
    for update in result["updates"]:
        assert update.keys() == {"site", "ridge", "share"}
        assert update["share"] in Target.damped.shares
        assert update["ridge"] is None or update["ridge"] > 0
