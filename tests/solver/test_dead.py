"""Inputs that are never active, through the methods: ReLU channels, heads without values.

Their output weights are twenty times the others', so whatever counts them keeps them.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pruning.calibration.calibration import Weight
from pruning.calibration.moments import Moments
from pruning.calibration.passes import collect
from pruning.latency.grid import heads
from pruning.methods.baselines import Flap, WandaSp
from pruning.methods.slimgpt import ChannelScore, HeadScore, SlimGPT
from pruning.methods.ziplm import Score
from pruning.models.shape import Heads, Width
from pruning.models.sites import Kind, projection, set_weight_, sites, weight
from pruning.search.options import Ramp
from pruning.search.search import Schedule
from pruning.solver.levels import Levels
from pruning.system.cache import Cache
from tests.helpers.data import lstsq
from tests.helpers.families import FAMILIES, opt
from tests.helpers.shapes import shapes
from tests.helpers.tiny import INF, job_with, padded_batches, pruning_context, ziplm

BATCHES = padded_batches(count=30)
RIDGES = [0.001, 0.01, 0.1, 1.0, INF]
DEAD = torch.zeros(96, dtype=torch.bool)  # 30 of 96 channels
DEAD[torch.randperm(96, generator=torch.Generator().manual_seed(2))[:30]] = True
DEAD_HEADS = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0]).bool()  # a KV group of llama

METHODS = {
    **{f"ziplm_{score}": ziplm(score, RIDGES) for score in Score},
    "wanda_sp": WandaSp("wanda_sp"),
    "flap": Flap("flap", bias=True),
    "flap_no_bias": Flap("flap_no_bias", bias=False),
}


@torch.no_grad()
def kill_(model, loud: float = 20.0):
    """Make the inputs DEAD and DEAD_HEADS of every block zero for any text."""
    layers = model.get_decoder().layers
    model.get_input_embeddings().weight.mul_(5)  # tokens differ, so that the others are active
    for site in sites(model):
        W = weight(projection(model, site))
        dead = columns(site)
        block = layers[site.block]
        if site.kind is Kind.FFN:
            if hasattr(block, "fc1"):
                b = block.fc1.bias
                b.copy_(torch.where(dead, -1e3, b.abs()))  # ReLU
            else:
                block.mlp.up_proj.weight[dead] = 0
        else:
            v = block.self_attn.v_proj
            rows = dead.view(-1, site.width)[:: site.heads_per_group].flatten()
            v.weight[rows] = 0
            if v.bias is not None:
                v.bias[rows] = 0
        set_weight_(projection(model, site), torch.where(dead, loud * W, W))
    return model


def dead_units(site) -> Tensor:
    return DEAD if site.kind is Kind.FFN else DEAD_HEADS


def columns(site) -> Tensor:
    return dead_units(site).repeat_interleave(site.width)


def shapes_of(site) -> list:
    if site.kind is Kind.FFN:
        return shapes([96, 80, 66, 50, 30, 12, 0])
    return heads(site.groups, site.heads_per_group)


@pytest.fixture(scope="module")
def moments(tmp_path_factory) -> dict[str, Moments]:
    """Collect the moments of each family; weights on dead inputs do not change them."""
    collected = {}
    for family in ("opt", "llama"):
        model = kill_(FAMILIES[family]())
        collected[family] = Moments(tmp_path_factory.mktemp(family))
        for index, block in enumerate(collect(model, BATCHES, Weight.none, sites(model))):
            collected[family].write(index, block)
    return collected


@torch.no_grad()
def inputs_of(model, site, held_out: bool) -> Tensor:
    """Return what the projection of a site reads of the real tokens."""
    seen: list[Tensor] = []
    handle = projection(model, site).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    parts = []
    for batch in BATCHES:
        if batch.held_out is held_out:
            model(input_ids=batch.ids, attention_mask=batch.mask)
            X = seen.pop().reshape(*batch.ids.shape, -1)
            parts.append(X[batch.mask.bool()].double())
    handle.remove()
    return torch.cat(parts)


def obs_order(W: Tensor, H: Tensor, damp: float) -> list[int]:
    """Remove live columns one by one; weights and inverse of what is left anew at every step."""
    A = H + damp * torch.diag(H.diagonal())
    K, order = H.diagonal().nonzero().flatten().tolist(), []
    while K:
        inverse = torch.linalg.inv(A[K][:, K])
        V = W @ A[:, K] @ inverse  # the optimum of the columns that are left
        order.append(K.pop(int((V.square().sum(0) / inverse.diagonal()).argmin())))
    return order


def wanda_order(W: Tensor, H: Tensor, damp: float) -> list[int]:
    score = W.square().sum(0) * H.diagonal()
    return [j for j in score.argsort().tolist() if H[j, j] > 0]


def expected_keep(order: list[int], width: int) -> Tensor:
    """Keep the last of the live ones; which dead ones stay at a width above theirs is all one."""
    keep = torch.zeros(96, dtype=torch.bool)
    keep[order[-width:] if width else []] = True
    return keep


@torch.no_grad()
@pytest.mark.parametrize("score", list(Score))
def test_ziplms_channels_leave_as_if_dead_ones_were_not_there(score, moments):
    """Order, losses and the choice of auto, against definitions on the live inputs alone."""
    model = kill_(opt())
    method, orders = ziplm(score, RIDGES), {"obs": obs_order, "wanda": wanda_order}
    for site in sites(model)[1::2]:
        W = weight(projection(model, site)).double()
        split = moments["opt"][site]
        solved = method.site_levels(site, W.float(), split, shapes_of(site))
        fit, held = (inputs_of(model, site, held_out) for held_out in (False, True))
        live = fit.any(0)
        assert torch.equal(live, ~DEAD)
        whole = (held @ W.T).square().sum()

        def error(
            keep: Tensor, ridge: float, W=W, fit=fit, held=held, live=live, whole=whole
        ) -> float:
            K = keep & live
            V = W[:, K] if ridge == INF else lstsq(W * live, fit, K, ridge)
            return float((held[:, K] @ V.T - held @ W.T).square().sum() / whole)

        if score is Score.auto:
            errors = {}
            for name, order in orders.items():
                judged = order(W * live, split.fit.H.double(), method.damp)
                keeps = [expected_keep(judged, width) for width in (80, 50)]
                errors[name] = sum(error(keep, 0.1) for keep in keeps)
            assert solved.score == min(errors, key=errors.__getitem__)
        order = orders[solved.score]
        judged = order(W * live, split.fit.H.double(), method.damp)
        final = order(W * live, split.all.H.double(), method.damp)
        for left, keep, loss in zip(solved.shapes, solved.keeps, solved.loss, strict=True):
            width = left.units
            assert int(keep.sum()) == width
            alive = expected_keep(final, width)
            assert torch.equal(keep & live, alive)
            expected = error(expected_keep(judged, width), solved.ridge)
            assert loss == pytest.approx(expected, rel=1e-3, abs=1e-6)  # float32 moments
        assert solved.loss[2] == pytest.approx(0, abs=1e-6)  # 66: only dead ones are gone


@torch.no_grad()
@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_dead_units_leave_first(name, family, moments):
    model = kill_(FAMILIES[family]())
    collected = moments[family]
    for site in sites(model):
        W = weight(projection(model, site))
        assert torch.equal(collected[site].all.H.diagonal() > 0, ~columns(site))
        solved = METHODS[name].site_levels(site, W, collected[site], shapes_of(site))
        dead, partly = dead_units(site), 0
        for left, keep in zip(solved.shapes, solved.keeps, strict=True):
            if isinstance(left, Heads) and left.per_group < site.heads_per_group:
                continue  # heads leave all groups evenly
            if (keep & dead).any():
                assert keep[~dead].all()
            partly += int(0 < keep.sum() < len(keep))
        assert partly > 1


@pytest.mark.job
@torch.no_grad()
@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_weights_on_dead_inputs_count_nowhere(name, family, moments):
    quiet, loud = (kill_(FAMILIES[family](), factor) for factor in (0.0, 1e4))
    levels = []
    for model in (quiet, loud):
        by_site = {}
        for site in sites(model):
            W = weight(projection(model, site))
            by_site[site] = METHODS[name].site_levels(
                site, W, moments[family][site], shapes_of(site)
            )
        levels.append(Levels(by_site, moments[family]))
    for site, solved in levels[0].items():
        other = levels[1][site]
        assert torch.equal(solved.keeps, other.keeps)
        assert (solved.ridge, solved.score) == (other.ridge, other.score)
        assert solved.loss == pytest.approx(other.loss, rel=1e-5, abs=1e-7)
        for level in range(len(solved.shapes)):
            V, V_other = (
                its.kept_weight(site, level, weight(projection(model, site)))
                for model, its in zip((quiet, loud), levels, strict=True)
            )
            live = ~columns(site)[levels[0].columns(site, level)]
            torch.testing.assert_close(V[:, live], V_other[:, live])


SLIMGPT = SlimGPT(smallest=8, decay=0, ridges=RIDGES)


@pytest.mark.job
@torch.no_grad()
@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("ffn_score", list(ChannelScore))
@pytest.mark.parametrize("score", list(HeadScore))
def test_slimgpt_takes_dead_units_first(score, ffn_score, family, tmp_path):
    """Where no more leaves than is dead, the logits of the dense model stay on the same text."""
    model = kill_(FAMILIES[family]())
    search = Schedule("schedule", ramp=Ramp.log, first=0.1, last=0.25)
    context = pruning_context(model, BATCHES, search, job_with(Cache(tmp_path)))
    plan = replace(SLIMGPT, score=score, ffn_score=ffn_score).plan(context)
    live_groups = 3 if family == "llama" else 6
    alive = Heads(live_groups, 2 if family == "llama" else 1)
    only_dead = {site: Width(66) if site.kind is Kind.FFN else alive for site in sites(model)}
    pruned, allocation = plan.build(only_dead)
    for site, keep in allocation.items():
        assert torch.equal(keep, ~dead_units(site))
    for batch in BATCHES[:3]:
        given = {"input_ids": batch.ids, "attention_mask": batch.mask}
        real = batch.mask.bool()
        torch.testing.assert_close(
            pruned(**given).logits[real], model(**given).logits[real], rtol=1e-4, atol=1e-4
        )
    more = {s: Width(40) if s.kind is Kind.FFN else Heads(live_groups - 1, 1) for s in sites(model)}
    for site, keep in plan.build(more)[1].items():
        assert not (keep & dead_units(site)).any()
