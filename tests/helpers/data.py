"""Correlated inputs and weights, and the references that the solver is held against."""

import torch
from torch import Tensor

from pruning.calibration.moment import Moment


def inputs(tokens: int, columns: int, seed: int = 0) -> Tensor:
    """Draw correlated inputs whose columns differ in scale, float64."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    scale = torch.rand(columns, generator=generator, dtype=torch.float64) + 0.3
    return X @ (torch.eye(columns) + 0.2 * mixing) * scale


def weights(rows: int, columns: int, seed: int = 1) -> Tensor:
    """Draw a weight, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def moment(X: Tensor) -> Tensor:
    """Return E[x x^T]."""
    return X.T @ X / len(X)


def mean(X: Tensor) -> Moment:
    """Return the moment of inputs, with their mean."""
    return Moment(moment(X), X.mean(0))


def lstsq(
    W: Tensor, X: Tensor, keep: Tensor, ridge: float = 0.0, Y: Tensor | None = None
) -> Tensor:
    """Fit kept columns to outputs Y (X W^T if not given) by QR on data, the ridge as extra rows.

    Minimises |X_K V^T - Y|^2 / tokens + ridge sum_j E[x_j^2] |v_j - w_j|^2.
    """
    Y = X @ W.T if Y is None else Y
    penalty = (ridge * X[:, keep].square().mean(0)).sqrt()
    A = torch.cat([X[:, keep] / len(X) ** 0.5, torch.diag(penalty)])
    B = torch.cat([Y / len(X) ** 0.5, penalty[:, None] * W[:, keep].T])
    return torch.linalg.lstsq(A, B, driver="gels").solution.T


def residual(W: Tensor, X: Tensor, keep: Tensor) -> float:
    """Return the least mean squared output error that the kept columns allow."""
    if not keep.any():
        return float((X @ W.T).square().sum() / len(X))
    V = lstsq(W, X, keep)
    return float((X[:, keep] @ V.T - X @ W.T).square().sum() / len(X))


def naive_greedy(
    W: Tensor, H: Tensor, width: int, partition: list[int] | None = None
) -> tuple[list[int], list[float]]:
    """Remove units one by one, inverting the moments of what is left at every step.

    The loss of keeping K is tr(W_R (H_RR - H_RK inv(H_KK) H_KR) W_R^T). Units of the groups that
    most are left of are the candidates.
    """
    units = len(H) // width
    groups = [0] * units if partition is None else partition

    def loss(gone: list[int]) -> float:
        R = torch.zeros(units, dtype=torch.bool)
        R[gone] = True
        R = R.repeat_interleave(width)
        K = ~R
        S = H[R][:, R] - H[R][:, K] @ torch.linalg.inv(H[K][:, K]) @ H[K][:, R]
        return float((W[:, R] @ S @ W[:, R].T).trace())

    order: list[int] = []
    scores: list[float] = []
    before = 0.0
    while len(order) < units:
        alive = [u for u in range(units) if u not in order]
        left = {g: sum(groups[u] == g for u in alive) for g in groups}
        due = [u for u in alive if left[groups[u]] == max(left.values())]
        losses = {u: loss([*order, u]) for u in due}
        best = min(losses, key=losses.__getitem__)
        order.append(best)
        scores.append(losses[best] - before)
        before = losses[best]
    return order, scores
