import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise

import pytest
import torch

from pruning.calibration.moment import Split
from pruning.calibration.moments import Moments
from pruning.latency.grid import heads, widths
from pruning.methods.baselines import Flap, Magnitude
from pruning.methods.leveled import Leveled
from pruning.methods.svd import SVD
from pruning.methods.ziplm import Score, ZipLM
from pruning.models.shape import Heads
from pruning.models.sites import Kind, Site, shape
from pruning.solver.levels import Levels, SiteLevels, foreign_code
from pruning.solver.obs import greedy
from pruning.solver.ordering import HeldOut, choose_ridge, kept_units
from tests.helpers.data import inputs, lstsq, mean, weights
from tests.helpers.shapes import shapes
from tests.helpers.tiny import INF, ziplm

FFN = Site(0, Kind.FFN, 40, 1)
ATTENTION = Site(1, Kind.ATTENTION, units=12, width=4, groups=4)  # three query heads per group
RIDGES = [0.001, 0.01, 0.1, 1, 10, INF]


def method(score: Score = Score.obs):
    return ziplm(score, RIDGES)


def problem(site: Site, fit: int = 400, held: int = 200, seed: int = 0, share: float = 0.0):
    """Draw fit and held-out inputs of one distribution, their moments, and a weight.

    With a held-out share of 0, all tokens are those to fit with: levels keep what was judged.
    """
    X = inputs(fit + held, site.columns, seed)
    both = X[:fit], X[fit:]
    found = Split(mean(both[0]), mean(both[1]), share)
    return weights(9, site.columns, seed + 1), both, found


def shapes_of(site: Site):
    return widths(40, 4) if site.kind is Kind.FFN else heads(4, 3)


@pytest.mark.parametrize("score", list(Score))
@pytest.mark.parametrize("site", [FFN, ATTENTION], ids=["ffn", "attention"])
def test_losses_are_the_errors_on_the_held_out_inputs(site, score):
    W, (fit, held), moments = problem(site)
    found = method(score).site_levels(site, W, moments, shapes_of(site))
    assert found.shapes == shapes_of(site)
    whole = (held @ W.T).square().sum()
    for keep, loss in zip(found.keeps, found.loss, strict=True):
        columns = keep.repeat_interleave(site.width)
        V = W[:, columns] if found.ridge == INF else lstsq(W, fit, columns, found.ridge)
        error = (held[:, columns] @ V.T - held @ W.T).square().sum() / whole
        # 1e-12: the dense level's error is zero, which lstsq reaches up to rounding
        assert loss == pytest.approx(float(error), rel=1e-8, abs=1e-12)
    assert found.loss[0] == 0
    assert found.loss[-1] == pytest.approx(1)


@pytest.mark.parametrize("score", list(Score))
@pytest.mark.parametrize("site", [FFN, ATTENTION], ids=["ffn", "attention"])
def test_held_out_tokens_judge_before_they_help_to_order(site, score):
    """Losses know nothing of the held-out tokens; what is kept in the end is ordered by all."""
    W, (fit, held), moments = problem(site, fit=60, held=40, share=0.4)
    found = method(score).site_levels(site, W, moments, shapes_of(site))
    judged = method(score).site_levels(
        site, W, Split(moments.fit, moments.held, 0.0), shapes_of(site)
    )
    assert found.loss == judged.loss
    assert (found.ridge, found.score) == (judged.ridge, judged.score)
    everything = mean(torch.cat([fit, held]))
    ordered = method(Score(found.score)).site_levels(
        site, W, Split(everything, moments.held, 0.0), shapes_of(site)
    )
    assert torch.equal(found.keeps, ordered.keeps)
    assert not torch.equal(found.keeps, judged.keeps)


@pytest.mark.parametrize("site", [FFN, ATTENTION], ids=["ffn", "attention"])
def test_every_level_keeps_what_its_shape_says(site):
    W, _, moments = problem(site)
    found = method().site_levels(site, W, moments, shapes_of(site))
    assert [shape(site, keep) for keep in found.keeps] == shapes_of(site)


def test_kept_groups_keep_as_many_heads_each_and_levels_are_nested():
    W, _, moments = problem(ATTENTION)
    found = method().site_levels(ATTENTION, W, moments, heads(4, 3))
    keeps = {s: keep.view(4, 3) for s, keep in zip(found.shapes, found.keeps, strict=True)}
    for left, keep in keeps.items():
        groups, per_group = left.sizes
        counts = keep.sum(1)
        assert set(counts[counts > 0].tolist()) == ({per_group} if groups else set())
        assert int((counts > 0).sum()) == groups
        if groups:
            assert torch.equal(
                counts > 0, keeps[Heads(groups, 3)].any(1)
            )  # heads leave, groups stay
        if per_group > 1:
            assert not (keeps[Heads(groups, per_group - 1)] & ~keep).any()
    for groups in (1, 2, 3):
        assert not (keeps[Heads(groups, 3)] & ~keeps[Heads(groups + 1, 3)]).any()


def test_ffn_levels_are_nested():
    W, _, moments = problem(FFN)
    keeps = method().site_levels(FFN, W, moments, widths(40, 4)).keeps
    for wider, narrower in pairwise(keeps):
        assert not (narrower & ~wider).any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fit", [6, 20, 60, 400])
def test_the_chosen_ridge_is_the_best_candidate(fit, seed):
    """Against every candidate by lstsq; with few tokens the update must not do harm."""
    W, (X, held), moments = problem(FFN, fit=fit, seed=10 * seed)
    generator = torch.Generator().manual_seed(seed)
    keeps = [torch.randperm(40, generator=generator) < n for n in (32, 20)]

    def error(ridge: float) -> float:
        total = 0.0
        for keep in keeps:
            V = W[:, keep] if ridge == INF else lstsq(W, X, keep, ridge)
            total += float((held[:, keep] @ V.T - held @ W.T).square().sum())
        return total / float((held @ W.T).square().sum())

    errors = {ridge: error(ridge) for ridge in RIDGES}
    chosen = choose_ridge(HeldOut(FFN, W, moments), keeps, RIDGES)
    assert errors[chosen] <= min(errors.values()) * (1 + 1e-8)  # never worse than no update


def test_a_ridge_behind_a_rise_is_not_missed():
    """Two kinds of removed channels: one is the small difference of two kept ones, one is noise.

    The first asks for a small ridge, the second for none of an update; between them is a rise.
    """
    draws = torch.randn(600, 36, generator=torch.Generator().manual_seed(0)).double()
    x, u, others = draws[:, :4], draws[:, 4:8], draws[:, 8:]
    X = torch.cat([u, others, x, x + 0.1 * u], 1)
    W = weights(9, 40)
    W[:, 8:] *= 3  # so that the first eight leave
    fit, held = X[:200], X[200:]
    solved = method(Score.wanda).site_levels(
        FFN, W, Split(mean(fit), mean(held), 0.4), shapes([40, 32])
    )
    keep = torch.arange(40) >= 8
    assert torch.equal(solved.keeps[1], keep)
    errors = {}
    for ridge in RIDGES:
        V = W[:, keep] if ridge == INF else lstsq(W, fit, keep, ridge)
        errors[ridge] = float((held[:, keep] @ V.T - held @ W.T).square().sum())
    assert errors[0.1] > errors[1] > errors[10] > errors[0.01] > errors[0.001]
    assert solved.ridge == 0.001


@pytest.mark.parametrize("whole", [1.0, 0.0], ids=["alive", "dead"])
def test_what_is_gone_costs_all(whole):
    """A bias goes with the sub-block, that of FLAP as well, even where all inputs are dead."""
    for site in (FFN, ATTENTION):
        W, (fit, held), _ = problem(site)
        fit, held = (whole * (part + 2) for part in (fit, held))  # FLAP leaves a large bias
        offered = shapes_of(site)
        for one in every_method():
            solved = one.site_levels(site, W, Split(mean(fit), mean(held), 0.3), offered)
            assert not solved.keeps[-1].any()
            assert solved.loss[-1] == 1
            assert solved.loss[0] == 0


def every_method() -> list[Leveled]:
    """Build every method of levels that end with nothing: all but ranks."""
    others = [kind() for kind in _concrete(Leveled) if kind not in (ZipLM, SVD)]
    return [*(ziplm(score, RIDGES) for score in Score), Flap(bias=False), *others]


def _concrete(base: type) -> list[type]:
    children = [child for child in base.__subclasses__() if child.__module__.startswith("pruning.")]
    return [one for child in children for one in _concrete(child)] or [base]


@pytest.mark.parametrize("pair", shapes([(4, 3), (4, 2), (2, 3), (2, 2), (3, 1), (1, 1)]))
def test_a_pair_of_the_lattice_costs_what_leads_to_it(pair):
    """Asked for alone it is what all pairs together say, with no unit ordered for another."""
    W, _, moments = problem(ATTENTION)
    H, damp, ordered = moments.fit.H, 0.01, []

    def remove(W, H, units):
        ordered.append((units.width, H.shape[0] // units.width, units.steps))
        return greedy(W, H, units, damp)

    every = kept_units(ATTENTION, W, H, heads(4, 3), remove, damp)
    ordered.clear()
    alone = kept_units(ATTENTION, W, H, [pair], remove, damp)
    assert torch.equal(alone[0], every[heads(4, 3).index(pair)])
    groups, left = pair.sizes
    passes = [(12, 4, 4 - groups), (4, 3 * groups, groups * (3 - left))]
    assert [one for one in ordered if one[2]] == [one for one in passes if one[2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", ["fit", "held"])
@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_moments_that_are_not_finite_are_refused_by_every_method(bad, part, dtype):
    for site in (FFN, ATTENTION):
        W, _, moments = problem(site)
        getattr(moments, part).H[3, 3] = bad
        for one in [*every_method(), SVD("svd", modules="*", whiten=True)]:
            with pytest.raises(ValueError, match=r"^calibration: .* activations overflow") as error:
                one.site_levels(site, W.to(dtype), moments, shapes_of(site))
            assert site.name in str(error.value)
            advice = f"use model.dtype=float32, not {str(dtype)[6:]}"
            assert (advice in str(error.value)) is (dtype is not torch.float32)


def test_weights_that_are_not_finite_are_named():
    W, _, moments = problem(FFN)
    W[2, 5] = INF
    for one in every_method():
        with pytest.raises(ValueError, match=r"^model: weights of block\.0\.ffn are not finite"):
            one.site_levels(FFN, W, moments, shapes_of(FFN))


def test_few_tokens_ask_for_a_large_ridge():
    """White inputs predict nothing of one another: an update from six tokens is all noise."""
    generator = torch.Generator().manual_seed(3)
    fit, held = torch.randn(406, 40, generator=generator, dtype=torch.float64).split([6, 400])
    moments = Split(mean(fit), mean(held), 0.5)
    found = method(Score.wanda).site_levels(FFN, weights(9, 40), moments, widths(40, 4))
    assert found.ridge >= 10
    W, _, moments = problem(FFN, fit=20_000)
    assert method(Score.wanda).site_levels(FFN, W, moments, widths(40, 4)).ridge <= 0.01


def test_auto_takes_the_score_of_the_smaller_held_out_error():
    chosen = set()
    for fit in (12, 24, 60, 200, 2000):
        W, _, moments = problem(FFN, fit=fit, seed=fit)
        offered = shapes([40, 32, 20, 0])
        found = {score: method(score).site_levels(FFN, W, moments, offered) for score in Score}
        auto = found[Score.auto]
        assert auto.score in ("obs", "wanda")
        assert torch.equal(auto.keeps, found[Score(auto.score)].keeps)
        at = RIDGES[len(RIDGES) // 2]  # scores are compared at the middle ridge
        judge = HeldOut(FFN, W, moments)
        losses = {s: judge(list(found[s].keeps[1:3]), at) for s in (Score.obs, Score.wanda)}
        assert losses[Score(auto.score)] == min(losses.values())
        chosen.add(auto.score)
    assert chosen == {"obs", "wanda"}  # the data tell, not a preference


def test_weights_of_a_level_are_solved_from_all_tokens(tmp_path):
    W, (fit, held), moments = problem(FFN, fit=300, held=100, share=0.25)
    stored = Moments(tmp_path)
    stored.write(0, {FFN: moments})
    levels = Levels({FFN: method().site_levels(FFN, W, moments, widths(40, 4))}, stored)
    level = 7
    keep = levels[FFN].keeps[level]
    assert 0 < keep.sum() < 40
    expected = lstsq(W, torch.cat([fit, held]), keep, levels[FFN].ridge)
    torch.testing.assert_close(levels.kept_weight(FFN, level, W), expected, rtol=1e-8, atol=1e-8)
    full = levels.trial_weight(FFN, level, W)[0]  # for searches, which judge on the held-out tokens
    expected = lstsq(W, fit, keep, levels[FFN].ridge)
    torch.testing.assert_close(full[:, keep], expected, rtol=1e-8, atol=1e-8)
    assert full[:, ~keep].abs().max() == 0
    assert torch.equal(levels.trial_weight(FFN, 0, W)[0], W)
    gone = len(levels[FFN].shapes) - 1
    assert levels.trial_weight(FFN, gone, W)[0].abs().max() == 0


def test_levels_survive_the_disk(tmp_path):
    of, stored = {}, Moments(tmp_path)
    for site in (FFN, ATTENTION):
        W, _, moments = problem(site)
        of[site] = method().site_levels(site, W, moments, shapes_of(site))
    Levels(of, stored).write(tmp_path)
    again = Levels.read(tmp_path, [FFN, ATTENTION], stored)
    for site, levels in of.items():
        assert torch.equal(again[site].keeps, levels.keeps)
        assert again[site].shapes == levels.shapes
        assert again[site].loss == levels.loss
        assert (again[site].ridge, again[site].score) == (levels.ridge, levels.score)


def test_what_is_not_finite_is_infinitely_dear_and_null_on_disk(tmp_path):
    """A loss of NaN is the worst there is, not the best; dense is free by construction."""
    keeps = torch.tensor([[True, True], [True, False], [False, False]])
    nan = float("nan")
    site = Site(0, Kind.FFN, 2, 1)
    found = SiteLevels(shapes([2, 1, 0]), keeps, [nan, nan, -INF], INF, "obs")
    assert found.loss == [0.0, INF, INF]
    Levels({site: found}, Moments(tmp_path)).write(tmp_path)

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    kept = json.loads((tmp_path / "levels.json").read_text(), parse_constant=refuse)
    assert kept[site.name]["loss"] == [0.0, None, None]
    again = Levels.read(tmp_path, [site], Moments(tmp_path))[site]
    assert again.loss == found.loss
    assert again.ridge == INF


@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_moments_that_are_not_finite_do_not_make_a_loss_of_zero(bad):
    """Methods that solve nothing refuse them as those do that factorise them."""
    W, _, moments = problem(FFN)
    moments.held.H[3, 3] = bad
    with pytest.raises(ValueError, match=r"block\.0\.ffn's inputs is not finite"):
        Magnitude("magnitude").site_levels(FFN, W, moments, shapes_of(FFN))


ELSEWHERE = """
from dataclasses import dataclass
from pruning.methods.scored import Scored

@dataclass
class Mine(Scored):
    name: str = "mine"

    def score(self, site, W, H):
        return {} * W.norm(dim=0)
"""


def test_code_from_elsewhere_is_part_of_the_key(tmp_path):
    """No version stands for it: with other code and the same fields, levels are solved again."""
    code = []
    for number, sign in enumerate("+-"):
        path = tmp_path / f"mine_{number}.py"
        path.write_text(ELSEWHERE.format(f"{sign}1"))
        found = spec_from_file_location(path.stem, path)
        assert found is not None
        assert found.loader is not None
        sys.modules[path.stem] = module = module_from_spec(found)
        try:
            found.loader.exec_module(module)
            code.append(foreign_code(module.Mine))
        finally:
            del sys.modules[path.stem]
    assert "+1 * W.norm" in code[0][0]
    assert code[0] != code[1]
    assert [foreign_code(kind) for kind in _concrete(Leveled)] == [[]] * len(_concrete(Leveled))
