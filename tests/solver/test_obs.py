import logging

import pytest
import torch

from pruning.solver.obs import (
    Units,
    batched,
    by_score,
    by_wanda,
    change,
    cholesky,
    damped_,
    energy,
    greedy,
    least_squares,
    wanda,
)
from tests.helpers.data import inputs, lstsq, moment, naive_greedy, residual, weights

ROWS, COLUMNS = 7, 24
KEEP = torch.rand(COLUMNS, generator=torch.Generator().manual_seed(4)) < 0.6


@pytest.fixture
def data():
    X = inputs(300, COLUMNS)
    return weights(ROWS, COLUMNS), X, moment(X)


# float64; the normal equations square a condition number of some 1e2: 1e-8 leaves three digits
def test_least_squares_is_the_optimum_on_the_data(data):
    W, X, H = data
    W_K = least_squares(W, H, KEEP)
    torch.testing.assert_close(W_K, lstsq(W, X, KEEP), rtol=1e-8, atol=1e-8)
    normal = W @ H[:, KEEP] @ torch.linalg.inv(H[KEEP][:, KEEP])
    torch.testing.assert_close(W_K, normal, rtol=1e-8, atol=1e-8)
    assert energy(change(W, KEEP, W_K), H) == pytest.approx(residual(W, X, KEEP), rel=1e-8)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 3.0])
def test_ridge_is_an_augmented_least_squares_problem(data, ridge):
    W, X, H = data
    W_K = least_squares(W, H, KEEP, ridge)
    torch.testing.assert_close(W_K, lstsq(W, X, KEEP, ridge), rtol=1e-8, atol=1e-8)
    assert (W_K - least_squares(W, H, KEEP)).abs().max() > 1e-4


def test_an_infinite_ridge_is_the_limit_of_large_ones(data):
    W, _, H = data
    assert torch.equal(least_squares(W, H, KEEP, float("inf")), W[:, KEEP])
    # the change falls as 1 / ridge
    torch.testing.assert_close(least_squares(W, H, KEEP, 1e8), W[:, KEEP], rtol=0, atol=1e-6)


def test_keeping_all_or_nothing(data):
    W, _, H = data
    assert torch.equal(least_squares(W, H, torch.ones(COLUMNS, dtype=torch.bool)), W)
    none = torch.zeros(COLUMNS, dtype=torch.bool)
    assert least_squares(W, H, none).shape == (ROWS, 0)
    assert energy(change(W, none, W[:, none]), H) == pytest.approx(energy(W, H), rel=1e-12)


@pytest.mark.parametrize("strip", [256, 24, 8, 7, 1])
def test_energy_is_the_mean_output_energy(data, strip, monkeypatch):
    """Read in strips, of which the last may be narrower; what is below the diagonal is not read."""
    monkeypatch.setattr("pruning.solver.obs.STRIP", strip)
    W, X, H = data
    assert energy(W, H) == pytest.approx(float((X @ W.T).square().sum(1).mean()), rel=1e-12)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_scores_sum_to_the_loss_of_the_least_squares_optimum(data, width, steps):
    """Greedy OBS ends at the optimum of the kept columns: its losses are those of lstsq."""
    W, X, H = data
    removal = greedy(W, H, Units(width, steps))
    keep = torch.ones(COLUMNS // width, dtype=torch.bool)
    keep[removal.order] = False
    keep = keep.repeat_interleave(width)
    dW = change(W, keep, lstsq(W, X, keep))
    assert float(removal.score.sum()) == pytest.approx(float((dW @ H @ dW.T).trace()), rel=1e-8)


def test_scores_of_a_whole_pass_sum_to_the_output_energy(data):
    W, _, H = data
    total = float(greedy(W, H).score.sum())
    assert total == pytest.approx(float((W @ H @ W.T).trace()), rel=1e-10)


@pytest.mark.parametrize("block", [1, 5, 24, 128])
@pytest.mark.parametrize(("width", "groups"), [(1, 1), (4, 1), (1, 4), (3, 2)])
def test_order_is_that_of_the_naive_greedy(data, width, groups, block):
    W, _, H = data
    units = COLUMNS // width
    partition = torch.arange(groups).repeat_interleave(units // groups)
    order, scores = naive_greedy(W, H, width, partition.tolist())
    units = Units(width, partition=partition if groups > 1 else None)
    found = greedy(W, H, units, block=block)
    assert found.order.tolist() == order
    # differences of two losses in the naive one: relative to the largest
    torch.testing.assert_close(
        found.score, torch.tensor(scores, dtype=torch.float64), rtol=1e-8, atol=1e-8 * max(scores)
    )


def test_order_of_many_columns_in_float32_is_that_in_one_block():
    X = inputs(2000, 150, seed=8)
    W, H = weights(40, 150), moment(X)
    orders = [greedy(W.float(), H.float(), block=block).order.tolist() for block in (1, 32, 150)]
    assert orders[0] == orders[1] == orders[2]
    assert orders[0] != by_score(wanda(W, H)).order.tolist()


def test_dead_inputs_leave_first_and_free(data):
    W, X, _ = data
    dead = [3, 11, 12]
    X[:, dead] = 0
    removal = greedy(W, moment(X))
    assert sorted(removal.order[:3].tolist()) == dead
    assert removal.score[:3].abs().max() == 0
    assert removal.score[3] > 0
    live = torch.ones(COLUMNS, dtype=torch.bool)
    live[dead] = False
    kept, _ = naive_greedy(W[:, live], moment(X[:, live]), 1)
    assert removal.order[3:].tolist() == live.nonzero().flatten()[kept].tolist()
    keep = KEEP.clone()
    keep[dead[0]] = True  # a dead input that stays does not disturb the others
    others = keep & live
    W_K = least_squares(W, moment(X), keep)
    expected = lstsq(W, X, others)
    torch.testing.assert_close(W_K[:, others[keep]], expected, rtol=1e-8, atol=1e-8)


def test_rank_deficient_moments_are_damped_and_said_so(data, caplog):
    """With 10 tokens, 14 of 24 columns can go at no cost; nothing becomes infinite."""
    W, X, _ = data
    H = moment(X[:10])
    with caplog.at_level(logging.WARNING, "pruning.solver.obs"):
        removal = greedy(W, H)
    assert "rank-deficient" in caplog.text
    assert torch.isfinite(removal.score).all()
    assert sorted(removal.order.tolist()) == list(range(COLUMNS))
    # the damping starts at 1e-10 of the mean diagonal and may grow tenfold a few times
    assert removal.score[:14].sum() < 1e-5 * energy(W, H)
    caplog.clear()
    keep = torch.ones(COLUMNS, dtype=torch.bool)
    keep[removal.order[:5]] = False
    with caplog.at_level(logging.WARNING, "pruning.solver.obs"):
        W_K = least_squares(W, H, keep)
    assert "rank-deficient" in caplog.text
    assert torch.isfinite(W_K).all()
    assert energy(change(W, keep, W_K), H) < 1e-5 * energy(W, H)


def test_a_well_conditioned_moment_is_not_damped(data, caplog):
    H = data[2]
    L = cholesky(H)
    torch.testing.assert_close(L @ L.T, H, rtol=1e-12, atol=1e-12)
    assert not caplog.records


def dead_and_free(X: torch.Tensor, W: torch.Tensor):
    """Return dead columns, and a live one in front of them that has no weight of its own."""
    dead = [3, 11, 12, 13, 14, 15]
    X[:, dead] = 0
    W[:, dead] *= 100
    W[:, 1] = 0
    return dead


@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize("tokens", [300, 10])
def test_dead_inputs_leave_before_any_other(data, tokens, scale):
    """Before one without a weight, which could make up for others, and before rounded zeros."""
    W, X, _ = data
    dead = dead_and_free(X, W)
    H = scale * moment(X[:tokens])
    every = {
        "greedy": greedy(W, H, damp=0.01),
        "undamped": greedy(W, H),
        "batched": batched(W, H, [2, 3, 1, 5, 13], damp=0.01),
        "wanda": by_wanda(W, H),
    }
    for name, removal in every.items():
        assert sorted(removal.order[:6].tolist()) == dead, name
        assert removal.score[:6].abs().max() == 0
    units = [
        greedy(W, H, Units(3), damp=0.01),
        greedy(W, H, Units(3), damp=0.01, grouped_cholesky=True),
    ]
    for removal in [*units, by_wanda(W, H, Units(3))]:  # 12, 13, 14 are one unit
        assert removal.order[0] == 4
        assert removal.score[0] == 0


@pytest.mark.parametrize("width", [1, 2])
def test_dead_units_leave_first_within_their_group(data, width):
    W, X, _ = data
    dead_and_free(X, W)
    partition = torch.arange(24 // width) % 3
    live = X.any(0).view(-1, width).any(1)
    assert not live.all()
    for remove in (greedy, by_wanda):
        order = remove(W, moment(X), Units(width, partition=partition)).order
        for group in range(3):
            alive = [bool(live[unit]) for unit in order if partition[unit] == group]
            assert alive == sorted(alive)


@pytest.mark.parametrize("width", [1, 4])
def test_greedy_damps_the_moment_itself(data, width):
    W, _, H = data
    order, scores = naive_greedy(W, H + 0.3 * torch.diag(H.diagonal()), width)
    removal = greedy(W, H, Units(width), damp=0.3)
    assert removal.order.tolist() == order
    torch.testing.assert_close(
        removal.score, torch.tensor(scores, dtype=torch.float64), rtol=1e-8, atol=1e-8 * max(scores)
    )
    if width == 1:
        assert batched(W, H, [1] * COLUMNS, damp=0.3).order.tolist() == order


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_dead_inputs_do_not_raise_what_a_deficient_moment_is_given(data, scale):
    """The addition is a share of what is live, whatever the unit of the inputs."""
    W, X, _ = data
    X[:, 10:] = 0
    H = moment(X[:6])  # ten live columns, six tokens
    keep = torch.arange(COLUMNS) != 0
    W_K = least_squares(W, scale * H, keep)
    alone = least_squares(W[:, :10], H[:10, :10], keep[:10])
    error, expected = (
        energy(change(W[:, :10], keep[:10], V[:, :9]), H[:10, :10]) for V in (W_K, alone)
    )
    assert expected < 1e-8 * energy(W, H)
    assert error < 1e-8 * energy(W, H)


def test_one_singular_matrix_leaves_the_others_of_a_batch_alone(data):
    H = data[2]
    singular = torch.ones(COLUMNS, COLUMNS).double() * 1e6
    L = cholesky(torch.stack([H, singular]))
    torch.testing.assert_close(L[0] @ L[0].T, H, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(L[1] @ L[1].T, singular, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_are_refused(data, bad):
    W, _, H = data
    H[2, 5] = H[5, 2] = bad
    for remove in (greedy, lambda W, H: batched(W, H, [3])):
        on_the_diagonal = data[2].clone()
        on_the_diagonal[0, 0] = bad
        with pytest.raises(ValueError, match="not finite"):
            remove(W, on_the_diagonal)
        with pytest.raises(ValueError, match=r"not finite in torch\.float64"):
            remove(W, H)
    with pytest.raises(ValueError, match="not finite"):
        least_squares(W, H, torch.arange(COLUMNS) < 12)


def test_damped_is_relative_to_each_input(data):
    H = data[2]
    H[4] = H[:, 4] = 0
    expected = H + 0.3 * torch.diag(H.diagonal())
    expected[4, 4] = H.diagonal().sum() / (COLUMNS - 1)  # neither small nor large beside the rest
    torch.testing.assert_close(damped_(H.clone(), 0.3), expected, rtol=1e-12, atol=0)
    assert torch.equal(damped_(0 * H, 0.3), torch.eye(COLUMNS).double())


def test_diagonal_orders_as_wanda(data):
    """Wanda compares |W_ij| |X_j|_2; of one row that orders columns, of many their squares add."""
    W, X, H = data
    published = W.abs() * X.norm(dim=0)
    of_one_row = by_score(wanda(W[:1], H))
    assert of_one_row.order.tolist() == published[0].argsort().tolist()
    for width in (1, 4):
        score = published.square().sum(0).view(-1, width).sum(1)
        found = by_score(wanda(W, H), Units(width))
        assert found.order.tolist() == score.argsort().tolist()
        torch.testing.assert_close(found.score, score[found.order] / len(X), rtol=1e-10, atol=1e-12)


def ranked(W, H, units):
    return by_score(wanda(W, H), units)


@pytest.mark.parametrize("remove", [greedy, ranked])
def test_a_partition_is_emptied_evenly(data, remove):
    W, _, H = data
    partition = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 1, 2])  # interleaved groups
    order = remove(W, H, Units(2, partition=partition)).order
    for start in range(0, 12, 3):
        assert sorted(partition[order[start : start + 3]].tolist()) == [0, 1, 2]
    assert sorted(order.tolist()) == list(range(12))
    some = remove(W, H, Units(2, 7, partition)).order
    assert some.tolist() == order[:7].tolist()


def test_nothing_may_be_asked_for(data):
    W, _, H = data
    for removal in (greedy(W, H, Units(steps=0)), greedy(W, H, Units(4, 0)), batched(W, H, [])):
        assert removal.order.tolist() == removal.score.tolist() == []


def test_groups_of_one_are_greedy_columns(data):
    W, _, H = data
    one_by_one, expected = batched(W, H, [1] * COLUMNS), greedy(W, H)
    assert one_by_one.order.tolist() == expected.order.tolist()
    torch.testing.assert_close(one_by_one.score, expected.score, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sizes", [[5, 3, 1], [9], [4, 4]])
def test_groups_end_at_the_least_squares_optimum(data, sizes):
    W, X, H = data
    removal = batched(W, H, sizes)
    assert len(set(removal.order.tolist())) == sum(sizes)
    keep = torch.ones(COLUMNS, dtype=torch.bool)
    keep[removal.order] = False
    assert float(removal.score.sum()) == pytest.approx(residual(W, X, keep), rel=1e-8)


def test_a_group_is_chosen_by_the_diagonal_of_the_inverse(data):
    """The first group against the definition; the second behind an update by least squares."""
    W, X, H = data
    removal = batched(W, H, [5, 3])
    first = (W.square().sum(0) / torch.linalg.inv(H).diagonal()).argsort()[:5]
    assert removal.order[:5].tolist() == first.tolist()
    keep = torch.ones(COLUMNS, dtype=torch.bool)
    keep[first] = False
    left = torch.linalg.inv(H[keep][:, keep]).diagonal()
    second = (lstsq(W, X, keep).square().sum(0) / left).argsort()[:3]
    assert removal.order[5:].tolist() == keep.nonzero().flatten()[second].tolist()


def test_the_grouped_cholesky_score_is_the_published_one(data):
    """sum_j |W_j|^2 / d_j, with d_j the inverse's diagonal once earlier columns of S are gone."""
    W, _, H = data
    width, scores = 4, []
    Hinv = torch.linalg.inv(H)
    for unit in range(COLUMNS // width):
        S = slice(unit * width, (unit + 1) * width)
        block, score = Hinv[S, S].clone(), 0.0
        for j in range(width):  # Gaussian elimination within the unit
            score += float(W[:, S][:, j].square().sum() / block[j, j])
            block -= torch.outer(block[:, j], block[j]) / block[j, j]
        scores.append(score)
    exact = greedy(W, H, Units(width))
    published = greedy(W, H, Units(width), grouped_cholesky=True)
    assert int(published.order[0]) == scores.index(min(scores))
    assert published.order.tolist() != exact.order.tolist()  # on these data they differ
    # whatever the order, removing everything costs the output energy
    assert float(published.score.sum()) == pytest.approx(energy(W, H), rel=1e-8)
