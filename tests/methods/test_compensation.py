"""What the writer in front of a gap takes over, against least squares on hooked inputs."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from pruning.methods.compensation import compensate_, read_again, spread
from pruning.methods.depth import Depth
from pruning.methods.plans import LevelsPlan
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import Allocation, Kind, projection, sites, weight
from pruning.search.search import NoSearch
from pruning.system.cache import Cache
from tests.helpers.data import lstsq
from tests.helpers.families import FAMILIES, ROUTING, bert, gemma2, llama
from tests.helpers.observed import observed
from tests.helpers.tiny import (
    INF,
    job_with,
    linear_table,
    padded_batches,
    pruning_context,
    solve_levels,
)

BATCHES = padded_batches(count=9)
RIDGE = 0.1
GONE = {(1, Kind.ATTENTION), (1, Kind.FFN), (2, Kind.FFN)}  # of three blocks: two gaps


def allocation(model, gone=GONE) -> Allocation:
    """Keep what is not gone, of FFNs that stay every other channel."""
    left = {}
    for site in sites(model):
        left[site] = torch.full((site.units,), (site.block, site.kind) not in gone)
        if site.kind is Kind.FFN:
            left[site][1::2] = False
    return left


def pruned_of(model, left):
    return shrink_(copy_sharing_weights(model), left)


def compensate(model, pruned, left, ridges, tmp_path) -> None:
    context = pruning_context(model, BATCHES, NoSearch("none"), job_with(Cache(tmp_path)))
    compensate_(context, ridges, pruned, left)


def seen(model) -> dict:
    """Return what every place reads, and what it gives, at all real tokens."""
    return {(s.block, s.kind): rows for s, rows in observed(model, BATCHES).items()}


def outputs(model) -> dict[tuple[int, Kind], Tensor]:
    """Return what every place gives, with its bias."""
    given = {}
    for site, rows in observed(model, BATCHES).items():
        bias = getattr(projection(model, site), "bias", None)
        given[site.block, site.kind] = rows.Y if bias is None else rows.Y + bias.double()
    return given


WRITERS = {  # in front of each gap, and what is gone in it
    (0, Kind.FFN): [(1, Kind.ATTENTION), (1, Kind.FFN)],
    (2, Kind.ATTENTION): [(2, Kind.FFN)],
}


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "phi3", "granite", "gpt_neox", "gpt2", "opt"])
def test_a_writer_takes_over_what_is_gone_behind_it(family, tmp_path):
    model = FAMILIES[family]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    left = allocation(model)
    plain, pruned = pruned_of(model, left), pruned_of(model, left)
    compensate(model, pruned, left, [RIDGE], tmp_path)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    gave, rows = outputs(model), seen(pruned)
    of = {(site.block, site.kind): site for site in sites(pruned)}
    for writer, gone in WRITERS.items():
        W, V = (weight(projection(m, of[writer])).double() for m in (plain, pruned))
        X, added = rows[writer].X, sum(gave[place] for place in gone)
        live = X.any(0)  # opt's ReLU leaves some channels without any input
        Y = X @ W.T + added
        expected = lstsq(W, X, live, RIDGE, Y)
        torch.testing.assert_close(V[:, live], expected, rtol=1e-3, atol=3e-4)
        assert (V - W).abs().max() > 1e-2
        assert (X @ V.T - Y).square().sum() < 0.9 * added.square().sum()
    for place, site in of.items():
        if place not in WRITERS:
            same = (weight(projection(m, site)) for m in (plain, pruned))
            assert torch.equal(*same)


@torch.no_grad()
@pytest.mark.parametrize("family", ROUTING)
def test_attention_takes_over_experts_and_experts_take_over_nothing(family, tmp_path):
    """Experts that stay are many projections: what is gone behind them stays gone."""
    model = FAMILIES[family]()
    gone = {(1, Kind.ATTENTION), (1, Kind.EXPERTS), (2, Kind.EXPERTS)}
    left, writer = allocation(model, gone), (2, Kind.ATTENTION)
    plain, pruned = pruned_of(model, left), pruned_of(model, left)
    compensate(model, pruned, left, [RIDGE], tmp_path)
    added, X = outputs(model)[2, Kind.EXPERTS], seen(pruned)[writer].X
    of = {(site.block, site.kind): site for site in sites(pruned)}
    W, V = (weight(projection(m, of[writer])).double() for m in (plain, pruned))
    expected = lstsq(W, X, X.any(0), RIDGE, X @ W.T + added)
    torch.testing.assert_close(V, expected, rtol=1e-3, atol=3e-4)
    changed = [name for name, tensor in plain.state_dict().items()
               if not torch.equal(tensor, pruned.state_dict()[name])]  # fmt: skip
    assert changed == ["model.layers.2.self_attn.o_proj.weight"]


@torch.no_grad()
def test_of_parallel_sub_blocks_the_one_that_stays_takes_over(tmp_path):
    """Both read the stream in front of the block: the FFN would read what is gone beside it."""
    model = FAMILIES["gpt_neox"]()
    assert model.gpt_neox.layers[0].use_parallel_residual
    left = allocation(model, {(1, Kind.ATTENTION)})
    plain, pruned = pruned_of(model, left), pruned_of(model, left)
    compensate(model, pruned, left, [RIDGE], tmp_path)
    changed = [
        (site.block, site.kind)
        for site in sites(pruned)
        if not torch.equal(*(weight(projection(m, site)) for m in (plain, pruned)))
    ]
    assert changed == [(1, Kind.FFN)]


@torch.no_grad()
@pytest.mark.parametrize(("family", "ridge"), [(llama, INF), (gemma2, RIDGE), (bert, RIDGE)])
def test_nothing_changes_where_it_cannot_help(family, ridge, tmp_path):
    """Not without a ridge that pays, nor where a norm lies between an output and the stream."""
    model = family()
    left = allocation(model, {(2, Kind.ATTENTION), (2, Kind.FFN)})
    pruned = pruned_of(model, left)
    before = deepcopy(pruned.state_dict())
    compensate(model, pruned, left, [ridge], tmp_path)
    assert all(torch.equal(before[name], t) for name, t in pruned.state_dict().items())


@torch.no_grad()
def test_with_nothing_gone_no_text_is_read(tmp_path, monkeypatch):
    model = llama()
    left = allocation(model, set())
    pruned = pruned_of(model, left)
    monkeypatch.setattr(type(model), "forward", None)
    monkeypatch.setattr("pruning.methods.compensation.embed", None)
    compensate(model, pruned, left, [RIDGE], tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("compensated", [True, False])
def test_depth_builds_what_is_compensated(compensated, tmp_path):
    model = llama()
    context = pruning_context(model, BATCHES, NoSearch("none"), job_with(Cache(tmp_path)))
    plan = Depth(compensate=compensated).plan(context)
    whole = {site: site.whole for site in sites(model)}
    left = plan.choose(context.table.budget(1.3))
    assert not plan.is_draft(whole)
    assert plan.is_draft(left) is compensated
    draft, allocation = plan.timing_model(left)
    (gone,) = {site.block for site, keep in allocation.items() if not keep.any()}
    writer = next(s for s in sites(draft) if (s.block, s.kind) == (gone - 1, Kind.FFN))
    pruned, _ = plan.build(left)
    W, V = (weight(projection(m, writer)) for m in (draft, pruned))
    assert torch.equal(W, V) is not compensated
    assert W.data_ptr() == weight(projection(model, writer)).data_ptr()  # shared as before


@torch.no_grad()
def test_levels_are_compensated_behind_the_pruned_blocks(tmp_path):
    """The chosen level's own weight is what the fold starts from."""
    model = llama()
    levels = solve_levels(model, BATCHES, tmp_path / "moments", linear_table(model, 16))
    attention, ffn = (s for s in sites(model) if s.block == 1)
    writer = next(s for s in sites(model) if (s.block, s.kind) == (0, Kind.FFN))
    middle = levels[writer].shapes[len(levels[writer].shapes) // 2]
    left = {site: site.whole for site in sites(model)} | {writer: middle, attention: attention.gone}
    context = pruning_context(model, BATCHES, NoSearch("none"), job_with(Cache(tmp_path)))
    plain, plan = (
        LevelsPlan(context, levels, lambda budget: None, [RIDGE], compensate)
        for compensate in (False, True)
    )
    assert plan.is_draft(left)
    assert not plain.is_draft(left)
    assert not plan.is_draft({site: site.whole for site in sites(model)})
    (first, allocation), (pruned, _) = plain.build(left), plan.build(left)
    compensate(model, first, allocation, [RIDGE], tmp_path)
    of = {(site.block, site.kind): site for site in sites(pruned)}
    assert (1, Kind.ATTENTION) not in of
    assert ffn in of.values()
    for site in of.values():
        expected, found = (weight(projection(m, site)) for m in (first, pruned))
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_it_reads_what_the_widest_writer_needs_and_no_more(tmp_path, monkeypatch):
    """Every other batch to fit and every other held-out one: as if there were no more."""
    model, gone = llama(), {(2, Kind.FFN)}
    left = allocation(model, gone)
    widest = max(site.columns for site in sites(model))
    (writer,) = (site for site in sites(model) if (site.block, site.kind) == (2, Kind.ATTENTION))
    monkeypatch.setattr("pruning.methods.compensation.PER_COLUMN", 2)
    text, tokens = BATCHES * 40, 40 * sum(batch.tokens for batch in BATCHES)
    taken = spread(text, writer.columns)
    n = tokens // (2 * writer.columns)
    assert n > 1
    for held_out in (False, True):
        some, every = ([b for b in t if b.held_out is held_out] for t in (taken, text))
        assert len(some) == -(-len(every) // n) > 0
    assert 2 * writer.columns <= sum(batch.tokens for batch in taken) < 3 * writer.columns
    assert read_again(model, tokens) == 2 * tokens / (tokens // (2 * widest))
    of_all, of_some = pruned_of(model, left), pruned_of(model, left)
    for pruned, batches in ((of_all, text), (of_some, taken)):
        context = pruning_context(model, batches, NoSearch("none"), job_with(Cache(tmp_path)))
        compensate_(context, [RIDGE], pruned, left)
    assert torch.equal(*(weight(projection(m, writer)) for m in (of_all, of_some)))
