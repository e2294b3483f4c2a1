"""Baselines against their papers' formulas, computed from the inputs; depth against the model."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.calibration.calibration import Target, Weight
from pruning.calibration.moment import Moment, Split
from pruning.calibration.moments import Moments
from pruning.calibration.passes import collect
from pruning.latency.grid import heads, widths
from pruning.methods.baselines import Flap, Magnitude, Random, WandaSp
from pruning.methods.blocks import Blocks, influence, removable
from pruning.models import checkpoint
from pruning.models.loaded import LoadedModel
from pruning.models.sites import Kind, Site, projection, shape, sites, weight
from pruning.solver.levels import Levels
from pruning.system.cache import Cache
from tests.helpers.data import inputs, moment, weights
from tests.helpers.families import FAMILIES, ROUTING, llama
from tests.helpers.tiny import INF, levels_plan, linear_table, padded_batches, word_tokenizer

FFN = Site(0, Kind.FFN, 40, 1)
HEADS = Site(1, Kind.ATTENTION, units=6, width=4, groups=6)
GROUPED = Site(1, Kind.ATTENTION, units=12, width=4, groups=4)


def magnitude(site, W, X):
    return W.square().sum(0).sqrt().view(-1, site.width).sum(1)


def wanda_sp(site, W, X):
    return (W.abs() * X.norm(dim=0)).mean(0).view(-1, site.width).sum(1)


def flap(site, W, X):
    fluctuation = ((X - X.mean(0)) ** 2).mean(0) * (W**2).sum(0)
    if site.kind is Kind.ATTENTION:
        fluctuation = fluctuation**2
    return fluctuation.view(-1, site.width).sum(1)


METHODS = {
    "magnitude": (Magnitude("magnitude"), magnitude),
    "wanda_sp": (WandaSp("wanda_sp"), wanda_sp),
    "flap": (Flap("flap", bias=True), flap),
    "flap_no_bias": (Flap("flap_no_bias", bias=False), flap),
}


def split(X, fit: int) -> Split:
    of = [Moment(moment(part), part.mean(0)) for part in (X[:fit], X[fit:])]
    return Split(*of, (len(X) - fit) / len(X))


@pytest.mark.parametrize("site", [FFN, HEADS], ids=["ffn", "heads"])
@pytest.mark.parametrize("name", METHODS)
def test_units_leave_by_the_papers_score(name, site):
    method, formula = METHODS[name]
    X = inputs(300, site.columns) + torch.linspace(-1, 2, site.columns)  # means differ
    W = weights(9, site.columns)
    shapes = widths(40, 4) if site is FFN else heads(6, 1)
    levels = method.site_levels(site, W, split(X, 200), shapes)
    order = formula(site, W, X).argsort(stable=True)
    for left, keep in zip(shapes, levels.keeps, strict=True):
        assert shape(site, keep) == left
        gone = (~keep).nonzero().flatten()
        assert set(gone.tolist()) == set(order[: len(gone)].tolist())
    assert levels.ridge == INF
    assert levels.loss[0] == 0


@pytest.mark.parametrize("bias", [False, True])
def test_losses_are_the_errors_on_the_held_out_inputs(bias):
    X = inputs(300, 40) + torch.linspace(-1, 2, 40)
    fit, held = X[:200], X[200:]
    W = weights(9, 40)
    moments = split(X, 200)
    moments.share = 0.0  # so that what is kept is what was judged
    levels = Flap("flap", bias=bias).site_levels(FFN, W, moments, widths(40, 4))
    for keep, loss in zip(levels.keeps[:-1], levels.loss, strict=False):
        b = W[:, ~keep] @ fit[:, ~keep].mean(0) if bias else 0.0
        error = (held[:, keep] @ W[:, keep].T + b - held @ W.T).square().sum()
        assert loss == pytest.approx(
            float(error / (held @ W.T).square().sum()), rel=1e-8, abs=1e-12
        )


def test_kept_groups_keep_as_many_heads_each():
    X = inputs(300, GROUPED.columns)
    W = weights(9, GROUPED.columns)
    for method, _ in METHODS.values():
        levels = method.site_levels(GROUPED, W, split(X, 200), heads(4, 3))
        assert [shape(GROUPED, keep) for keep in levels.keeps] == heads(4, 3)


def test_random_orders_depend_on_seed_and_site_alone():
    W, X = weights(9, 40), inputs(300, 40)
    other = Site(3, Kind.FFN, 40, 1)

    def keeps(seed: int, site: Site, X=X):
        return Random("random", seed=seed).site_levels(site, W, split(X, 200), widths(40, 4)).keeps

    assert torch.equal(keeps(0, FFN), keeps(0, FFN, 5 * X.flip(1)))
    assert not torch.equal(keeps(0, FFN), keeps(1, FFN))
    assert not torch.equal(keeps(0, FFN), keeps(0, other))


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ROUTING])
def test_flap_leaves_the_mean_of_the_outputs_where_it_was(family, tmp_path):
    """On the calibration text itself, each pruned projection gives the dense mean output."""
    model = FAMILIES[family]()
    batches = padded_batches()
    moments = _moments(model, batches, tmp_path)
    table = linear_table(model)
    method = Flap("flap", bias=True)
    of = {}
    for site in sites(model):
        W = weight(projection(model, site))
        of[site] = method.site_levels(site, W, moments[site], table.levels(site))
    levels = Levels(of, moments)
    level = {site: len(of[site].shapes) // 2 for site in of}
    target = Target.dense  # says nothing to a method without an update
    plan = levels_plan(model, levels, lambda budget: None, batches, target, method.ridges)
    assert not plan.expensive
    shapes = {site: of[site].shapes[level[site]] for site in of}
    pruned, allocation = plan.build(shapes)
    for site, keep in allocation.items():
        before, after = (projection(m, site) for m in (model, pruned))
        columns = keep.repeat_interleave(site.width)
        assert not columns.all()
        mean = moments[site].all.mean
        b = 0 if before.bias is None else before.bias
        torch.testing.assert_close(
            weight(after) @ mean[columns] + after.bias, weight(before) @ mean + b
        )
        assert after.bias is not before.bias  # the dense model is as it was
    checkpoint.save(pruned, None, tmp_path / "model", "")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    ids = batches[0].ids
    assert torch.equal(again(ids).logits, pruned(ids).logits)


def _moments(model, batches, directory) -> Moments:
    found = Moments(directory)
    for index, block in enumerate(collect(model, batches, Weight.none, sites(model))):
        found.write(index, block)
    return found


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_block_influence_is_that_of_the_hidden_states(family, tmp_path):
    model, batches = FAMILIES[family](), padded_batches()
    total, tokens = np.zeros(len(model.base_model.get_submodule(_layers(model)))), 0
    streams: dict[int, torch.Tensor] = {}
    for index, block in enumerate(model.base_model.get_submodule(_layers(model))):
        block.register_forward_hook(
            lambda m, args, kwargs, out, i=index: streams.update(
                {
                    2 * i: args[0] if args else kwargs["hidden_states"],
                    2 * i + 1: out[0] if isinstance(out, tuple) else out,
                }
            ),
            with_kwargs=True,
        )
    for batch in batches:
        model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        real = batch.mask.bool()
        for i in range(len(total)):
            a, b = (streams[2 * i + side][real].double() for side in (0, 1))
            total[i] += float(((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).sum())
        tokens += int(real.sum())
    found = influence(LoadedModel(model, word_tokenizer()), batches, Cache(tmp_path))
    np.testing.assert_allclose(found, 1 - total / tokens, rtol=1e-6, atol=1e-9)


def _layers(model) -> str:
    return {"gpt2": "h", "opt": "decoder.layers"}.get(model.config.model_type, "layers")


def test_blocks_leave_whole_and_in_order():
    model = llama()
    table = linear_table(model)
    assert removable(model) == [1, 2]  # caches read the length at the first
    plan = Blocks(model, [2, 1], table)
    per_block = 3.0
    for gone, budget in (([], 11.0), ([2], 10.9), ([2], 8.0), ([1, 2], 7.9), ([1, 2], 5.0)):
        shapes = plan.choose(budget)
        assert shapes is not None
        assert sorted({s.block for s, left in shapes.items() if not left.units}) == gone
        assert table.total(shapes) == pytest.approx(table.dense - per_block * len(gone))
    assert plan.choose(4.9) is None
    pruned, allocation = plan.build(plan.choose(8.0))
    assert [bool(keep.any()) for keep in allocation.values()] == [True] * 4 + [False] * 2
    ids = padded_batches()[0].ids
    reference = llama()
    del reference.model.layers[2:]
    reference.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(pruned(ids).logits, reference(ids).logits)
