"""Targets between W x and y, against least squares on rows of both."""

import pytest
import torch
from torch import Tensor

from pruning.calibration.calibration import Target
from pruning.calibration.moment import Moment, Split
from pruning.models.sites import Kind, Site
from pruning.solver.obs import least_squares
from pruning.solver.ordering import HeldOut, Update, choose_update
from tests.helpers.data import inputs, lstsq, mean, weights
from tests.helpers.tiny import INF

FFN = Site(0, Kind.FFN, 24, 1)
KEEP = torch.rand(FFN.units, generator=torch.Generator().manual_seed(4)) < 0.6
RIDGES = [0.001, 0.01, 0.1, 1, 10, INF]
SHARES = Target.damped.shares


def problem(fit: int, noise: float, held: int = 300, seed: int = 0, scale: float = 0.5):
    """Draw inputs, and outputs of a changed weight with noise on them; a fit and a held-out part.

    The change is what damage in front of a site does to what it should give, so far as its inputs
    tell; the noise is what they do not tell.
    """
    X = inputs(fit + held, FFN.columns, seed)
    W = weights(9, FFN.columns, seed + 1)
    draw = torch.Generator().manual_seed(seed)
    Y = X @ (W + scale * weights(9, FFN.columns, seed + 2)).T
    Y = Y + noise * torch.randn(len(X), 9, generator=draw, dtype=X.dtype)
    return W, (X[:fit], Y[:fit]), (X[fit:], Y[fit:])


def moment(X: Tensor, Y: Tensor) -> Moment:
    plain = mean(X)
    return Moment(plain.H, plain.mean, Y.T @ X / len(X))


def mixed(W: Tensor, X: Tensor, Y: Tensor, share: float) -> Tensor:
    return (1 - share) * X @ W.T + share * Y


def solved(W: Tensor, X: Tensor, Y: Tensor, update: Update) -> Tensor:
    """Solve on rows; the definition."""
    if update.ridge == INF:
        return W[:, KEEP]
    return lstsq(W, X, KEEP, update.ridge, mixed(W, X, Y, update.share))


@pytest.mark.parametrize("ridge", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_a_share_of_the_target_is_least_squares_on_mixed_outputs(share, ridge):
    W, (X, Y), _ = problem(300, 1.0)
    given = moment(X, Y)
    V = least_squares(W, given.H, KEEP, ridge, given.target, share)
    expected = solved(W, X, Y, Update(ridge, share))
    torch.testing.assert_close(V, expected, rtol=1e-8, atol=1e-8)


def test_no_share_is_the_local_target_and_a_whole_one_the_dense_to_the_last_bit():
    W, (X, Y), _ = problem(300, 1.0)
    given = moment(X, Y)
    local, dense = (least_squares(W, given.H, KEEP, 0.1, target) for target in (None, given.target))
    ends = [least_squares(W, given.H, KEEP, 0.1, given.target, share) for share in (0.0, 1.0)]
    assert torch.equal(ends[0], local)
    assert torch.equal(ends[1], dense)
    assert (local - dense).abs().max() > 0.1


@pytest.mark.parametrize("ridge", RIDGES)
def test_errors_are_those_of_the_held_out_rows(ridge):
    W, fit, (X, Y) = problem(40, 1.0)
    judge = HeldOut(FFN, W, Split(moment(*fit), moment(X, Y), 0.3))
    for share, error in zip(SHARES, judge.by_share(KEEP, ridge, SHARES), strict=True):
        V = solved(W, *fit, Update(ridge, share))
        missed = (X[:, KEEP] @ V.T - Y).square().sum() / len(X)
        assert error == pytest.approx(float(missed - Y.square().sum() / len(X)), rel=1e-8)


def error_of(update: Update, W: Tensor, fit, held) -> float:
    V = solved(W, *fit, update)
    return float((held[0][:, KEEP] @ V.T - held[1]).square().sum())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("fit", [30, 100, 1000])
def test_the_pair_of_the_least_held_out_error_is_chosen(fit, noise, seed):
    """So on held-out rows it is at least as good as either target with its best ridge."""
    W, rows, held = problem(fit, noise, seed=10 * seed)
    judge = HeldOut(FFN, W, Split(moment(*rows), moment(*held), 0.2))
    errors = {
        Update(ridge, share): error_of(Update(ridge, share), W, rows, held)
        for ridge in RIDGES
        for share in SHARES
    }
    chosen = choose_update(judge, KEEP, RIDGES, SHARES)
    assert errors[chosen] <= min(errors.values()) * (1 + 1e-8)


def test_noise_asks_for_little_of_the_target_and_rows_for_more():
    """Noise on few rows overfits: of a target without any, the whole is taken."""
    taken: dict[tuple[int, float], set[float]] = {}
    for fit, noise in ((30, 30.0), (100, 8.0), (20_000, 0.0)):
        for seed in range(6):
            W, rows, held = problem(fit, noise, held=2000, seed=10 * seed)
            judge = HeldOut(FFN, W, Split(moment(*rows), moment(*held), 0.2))
            taken.setdefault((fit, noise), set()).add(
                choose_update(judge, KEEP, RIDGES, SHARES).share
            )
    few, some, many = taken.values()
    assert max(few) < 1
    assert 0 in few
    assert some & {0.25, 0.5}
    assert many == {1.0}


def test_a_single_share_is_todays_choice_of_a_ridge():
    W, rows, held = problem(60, 3.0)
    split = Split(moment(*rows), moment(*held), 0.2)
    local = Split(mean(rows[0]), mean(held[0]), 0.2)
    for shares, given in (((0.0,), local), ((1.0,), split)):
        errors = {r: HeldOut(FFN, W, given)([KEEP], r) for r in RIDGES}
        best = Update(min(errors, key=errors.__getitem__), shares[0])
        assert choose_update(HeldOut(FFN, W, given), KEEP, RIDGES, shares) == best


@pytest.mark.parametrize("empty", [0.0, float("nan"), float("inf")])
def test_where_errors_say_nothing_the_weights_stay(empty):
    """Of equal pairs, or of none that is finite, the one without an update."""
    W, rows, (X, Y) = problem(60, 1.0)
    held = moment(X * empty, Y)
    chosen = choose_update(HeldOut(FFN, W, Split(moment(*rows), held, 0.2)), KEEP, RIDGES, SHARES)
    assert chosen == Update(INF, 0.0)
