"""Low rank: the whitened SVD against LAPACK's, its error against the outputs, and what is cut."""

import pytest
import torch

from pruning.calibration.calibration import Weight
from pruning.calibration.moment import Split
from pruning.calibration.moments import Moments
from pruning.calibration.passes import Reading, block_moments, collect
from pruning.latency.table import LatencyTable
from pruning.methods.svd import SVD
from pruning.models.blockwise import embed
from pruning.models.modeling_pruned import LowRank
from pruning.models.sites import Kind, Site, blocks, linears, projection, sites, weight
from pruning.solver.ranks import Ranks, components, rank_levels
from tests.helpers.data import inputs, mean, weights
from tests.helpers.families import EVERY, llama
from tests.helpers.shapes import costs, shapes
from tests.helpers.tiny import padded_batches

BATCHES = padded_batches()


@pytest.mark.parametrize(("rows", "columns"), [(9, 20), (20, 20), (31, 12)])
def test_truncation_error_is_the_measured_output_error(rows, columns):
    """Against LAPACK's SVD of W L, and against the outputs for real inputs."""
    X, W = inputs(300, columns), weights(rows, columns)
    H = mean(X).H
    U = components(W, H)
    torch.testing.assert_close(U.T @ U, torch.eye(min(rows, columns)).double())
    values = torch.linalg.svdvals(W @ torch.linalg.cholesky(H))
    for rank in range(1, min(rows, columns)):
        B, A = U[:, :rank], U[:, :rank].T @ W
        measured = (X @ W.T - X @ A.T @ B.T).square().sum(1).mean()
        assert float(measured) == pytest.approx(float(values[rank:].square().sum()), rel=1e-9)


def test_moments_without_full_rank_are_no_obstacle():
    X, W = inputs(7, 20), weights(12, 20)  # fewer tokens than inputs
    U = components(W, mean(X).H)[:, :7]
    torch.testing.assert_close(X @ W.T @ U @ U.T, X @ W.T)


@pytest.mark.parametrize("plain", [False, True])
def test_losses_are_the_errors_on_the_held_out_inputs(plain):
    X, W = inputs(500, 20), weights(16, 20)
    fit, held = X[:300], X[300:]
    site = Site(0, Kind.LINEAR, 16, module="mlp.up_proj")
    ranks = [16, 9, 4, 1]
    found = rank_levels(site, W, Split(mean(fit), mean(held), 0.4), shapes(ranks), plain)
    L = torch.eye(20).double() if plain else torch.linalg.cholesky(mean(fit).H)
    U = torch.linalg.svd(W @ L).U
    for rank, keep, loss in zip(ranks, found.keeps, found.loss, strict=True):
        V = U[:, :rank] @ U[:, :rank].T @ W
        error = (held @ (W - V).T).square().sum() / (held @ W.T).square().sum()
        assert loss == pytest.approx(float(error), rel=1e-8, abs=1e-12)
        assert keep.tolist() == [True] * rank + [False] * (16 - rank)


@pytest.mark.parametrize("family", EVERY)
def test_every_projection_has_the_moments_of_its_own_inputs(family):
    model = EVERY[family]()
    of = linears(model)
    seen = {site: [] for site in of}
    for site in of:
        projection(model, site).register_forward_pre_hook(
            lambda m, args, site=site: seen[site].append(args[0].flatten(0, -2).double())
        )
    found = {s: m for b in collect(model, BATCHES, Weight.none, of) for s, m in b.items()}
    assert list(found) == of
    for inputs_of in seen.values():
        inputs_of.clear()
    with torch.no_grad():
        for batch in BATCHES:
            model(input_ids=batch.ids, attention_mask=batch.mask)
    real = [batch.mask.flatten().bool() for batch in BATCHES]
    most = max(map(len, (x for inputs_of in seen.values() for x in inputs_of)))
    seen = {s: [x for x in xs if len(x) == most] for s, xs in seen.items()}  # no positions
    for site, moment in found.items():
        X = torch.cat([x[r] for x, r in zip(seen[site], real, strict=True)])
        torch.testing.assert_close(moment.all.H.double(), X.T @ X / len(X), rtol=1e-4, atol=1e-5)


def ranks_of(model, directory, modules: str = "*") -> Ranks:
    """Solve levels at the dense rank, at half and at a quarter of it."""
    method = SVD("svd", modules=modules, whiten=True)
    of = method.sites(model)
    parts = {s.part: costs({s.units: 1.0, s.units // 2: 0.5, s.units // 4: 0.2}) for s in of}
    table = LatencyTable(parts, 1.0, 3, 1.0, 1.0 + sum(1.0 for _ in of))
    moments = Moments(directory)
    for index, block in enumerate(collect(model, BATCHES, Weight.none, of)):
        moments.write(index, block)
    levels = {}
    for site in of:
        W = weight(projection(model, site))
        levels[site] = method.site_levels(site, W, moments[site], table.levels(site))
    return Ranks(levels, moments)


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_the_cut_model_gives_what_the_product_gives(family, tmp_path):
    dense, reference = EVERY[family](), EVERY[family]()
    levels = ranks_of(dense, tmp_path)
    choice = [index % 3 for index in range(len(levels))]
    before = {name: p.clone() for name, p in dense.state_dict().items()}
    pruned, allocation = levels.cut(dense, choice)
    for (site, keep), level in zip(allocation.items(), choice, strict=True):
        module = projection(pruned, site)
        assert isinstance(module, LowRank) == (level > 0)
        if isinstance(module, LowRank):
            assert module.rank == int(keep.sum()) == site.units // (2 * level)
            weight(projection(reference, site)).copy_(module.B.weight @ module.A.weight)
    for batch in BATCHES:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        logits = pruned(**inputs).logits
        torch.testing.assert_close(logits, reference(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], p) for name, p in dense.state_dict().items())
    drafted, same = levels.timing_model(dense, choice)
    shapes = {name: p.shape for name, p in pruned.named_parameters()}
    assert {name: p.shape for name, p in drafted.named_parameters()} == shapes
    assert all(torch.equal(same[site], keep) for site, keep in allocation.items())


def test_a_glob_chooses_projections():
    model = llama()
    chosen = SVD("svd", modules="mlp.*", whiten=True).sites(model)
    assert [s.module for s in chosen[:3]] == ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    with pytest.raises(ValueError, match=r"^method\.modules='mpl\.\*' fits no projection: .*q_pr"):
        SVD("svd", modules="mpl.*", whiten=True).sites(model)


@pytest.mark.parametrize("weighting", list(Weight))
@pytest.mark.parametrize("family", ["llama", "opt", "bert"])
def test_moments_that_stop_early_are_the_same(family, weighting):
    """The second call runs only what comes in front of the site, and knows its weights."""
    model = EVERY[family]()
    attention, ffn = sites(model)[:2]
    states, others = ([embed(model, batch) for batch in BATCHES] for _ in range(2))
    block_moments(model, 0, states, Reading([attention], weighting), advance=False)
    ran = []
    projection(model, ffn).register_forward_hook(lambda *_: ran.append(1))
    stopped = block_moments(model, 0, states, Reading([ffn], weighting), advance=False)[ffn]
    assert not ran
    whole = block_moments(model, 0, others, Reading([ffn], weighting), advance=True)[ffn]
    assert torch.equal(stopped.all.H, whole.all.H)
    for state, other in zip(states, others, strict=True):
        assert torch.equal(state.advance(0, blocks(model)[0]), other.hidden)
        assert state.weights is None
