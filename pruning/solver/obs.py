"""Structured Optimal Brain Surgeon: which columns of a weight go, and what the others become.

The letters are those of ZipLM (arXiv:2302.04089) and SlimGPT (arXiv:2412.18110):

    W   weight, [rows, columns]; a *unit* is `width` neighbouring columns (a head, a channel)
    H   second moment of the inputs, E[x x^T], [columns, columns]
    K,R kept and removed columns

Removing R costs tr(dW H dW^T). For given K the best dW is a least-squares problem with a closed
form (`least_squares`); the order in which units leave is found greedily, the unit with the
smallest exact increase first (`greedy`, Algorithm 1 of ZipLM).
"""

# torch.linalg and Tensor.unique have no types; matrices in a paper's letters change as it says
# pyright: reportUnknownMemberType=false, reportConstantRedefinition=false

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

log = logging.getLogger(__name__)

STRIP = 256  # columns of a moment that are read at once

Matrix = Float[Tensor, "rows columns"]
Moment = Float[Tensor, "columns columns"]


@dataclass(frozen=True)
class Units:
    """Which units of a weight leave, and in what company."""

    width: int = 1  # neighbouring columns of a unit
    steps: int | None = None  # how many leave; None: all
    # the group of each unit; they then leave evenly, one from every group before a second from any
    partition: Int[Tensor, " units"] | None = None


PANEL = 128  # rows of a matrix that are copied at once
COLUMNS = Units()  # every column by itself


@dataclass
class Removal:
    """One greedy pass: every level of a site is a prefix of `order`."""

    order: Int[Tensor, " steps"]  # unit removed at each step
    score: Float[Tensor, " steps"]  # loss it added; the running sum is tr(dW H dW^T)


def live(H: Moment) -> Bool[Tensor, " columns"]:
    """Tell the inputs that are ever active from the dead ones, by the diagonal of a raw moment."""
    return H.diagonal() != 0  # NaN is not dead


def damped_(H: Moment, ridge: float) -> Moment:
    """Make H + ridge diag(H) of H in its memory, a dead input (H_ii = 0) getting the others' mean.

    What is dead can no longer be told from the result.

    Scaling the ridge by each input's own energy makes the solution independent of the inputs'
    units, and spans what the field does: at 0 it is plain OBS; as it grows the off-diagonal loses
    its weight until scores are Wanda's |w|^2 E[x^2] and the kept columns are left as they are.
    """
    energies, alive = H.diagonal(), live(H)
    mean = energies.sum() / alive.sum() if alive.any() else 1.0
    energies.copy_(torch.where(alive, energies * (1 + ridge), mean))
    return H


def cholesky(H: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Factor H = L L^T; where it is not positive definite, add to its diagonal and say so.

    The addition starts at 1e-10 (1e-6 in float32) of the mean of a matrix's own diagonal and grows
    tenfold until the factorisation succeeds; ValueError when a matrix contains NaN or infinity.
    """
    if not (H.sum().isfinite() or torch.isfinite(H).all()):  # a sum takes no memory
        raise ValueError(f"A matrix to be factored is not finite in {H.dtype}")
    share = 1e-10 if H.dtype == torch.float64 else 1e-6
    first = share * H.diagonal(dim1=-2, dim2=-1).abs().mean(-1).clamp(min=1e-30)
    added = torch.zeros_like(first)
    while True:
        L, info = cast(tuple[Tensor, Tensor], torch.linalg.cholesky_ex(H))
        if not info.any():
            return L
        step = torch.where(info > 0, torch.maximum(added * 9, first), 0.0)
        H = H + torch.diag_embed(step[..., None].expand(H.shape[:-1]))
        added = added + step
        log.warning(
            "Cholesky failed on a rank-deficient moment: %.1e added to its diagonal",
            float(added.max()),
        )


def factored(make: Callable[[], Moment]) -> Moment:
    """Factor the symmetric matrix that a call makes, in its own memory; as `cholesky` does."""
    H = make()
    if H.sum().isfinite():
        L, info = H.mT, torch.empty((), dtype=torch.int32, device=H.device)
        torch.linalg.cholesky_ex(L, out=(L, info))
        if not info:
            return L
        H = make()
    return cholesky(H)


def _forward(L: Float[Tensor, "n n"], B: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Solve L X = B for a lower triangular L."""
    return cast(Tensor, torch.linalg.solve_triangular(L, B, upper=False))


def least_squares(
    W: Matrix,
    H: Moment,
    keep: Bool[Tensor, " columns"],
    ridge: float = 0.0,
    target: Matrix | None = None,
    share: float = 1.0,
) -> Float[Tensor, "rows kept"]:
    """Return the kept columns that minimise E|V x_K - y|^2 + ridge |V - W_K|^2_diag(H).

        V = W_K + (T_K - W_K H_KK) (H_KK + ridge diag(H_KK))^-1,   T = E[y x^T]

    `target` is T; without it y = W x and T = W H: what is minimised is tr(dW H dW^T), and with
    ridge 0 the result is W H[:,K] inv(H_KK), where greedy OBS ends. With a `share` a below 1 the
    outputs are (1 - a) W x + a y: V is linear in a. With an infinite ridge the kept columns do not
    change. All is computed in the precision of W, the result's.
    """
    if share == 0:
        target = None
    if ridge == float("inf") or not keep.any() or (target is None and keep.all()):
        return W[:, keep]
    K, R = (columns.nonzero().flatten() for columns in (keep, ~keep))

    def H_KK() -> Moment:  # a copy
        return H[K[:, None], K].to(W.dtype)

    def local() -> Matrix:
        return W[:, R] @ H[R[:, None], K].to(W.dtype)

    if target is None:
        missing = local()
    else:
        missing = target[:, K].to(W.dtype) - W[:, K] @ H_KK()
        if share < 1:
            missing = torch.lerp(local(), missing, share)
    L = factored(lambda: damped_(H_KK(), ridge))
    halfway = _forward(L, missing.T)
    return W[:, K] + cast(Tensor, torch.linalg.solve_triangular(L.mT, halfway, upper=True)).T


def energy(W: Matrix, H: Moment) -> float:
    """Return tr(W H W^T), the mean energy of the outputs W x.

    H is symmetric: what lies above its diagonal blocks counts twice, and what lies below is not
    read, which is little more than half of the flop of W H.
    """
    total = torch.zeros((), dtype=torch.float64, device=W.device)
    for start in range(0, len(H), STRIP):
        here = slice(start, start + STRIP)
        Y = W[:, here] @ H[here, here]
        if start:
            Y.addmm_(W[:, :start], H[:start, here], alpha=2)
        total += torch.sum(Y * W[:, here]).double()
    return float(total)


def change(
    W: Matrix, keep: Bool[Tensor, " columns"], W_K: Float[Tensor, "rows kept"]
) -> Float[Tensor, "rows columns"]:
    """Return dW: from W to the kept columns W_K, with zeros where columns were removed.

    `energy(dW, H)` with moments H that W_K was not solved with is the held-out error.
    """
    dW = -W
    dW[:, keep] += W_K
    return dW


def wanda(W: Matrix, H: Moment) -> Float[Tensor, " columns"]:
    """Return |w|^2 E[x^2] of every column: Wanda (arXiv:2306.11695), summed over squares.

    It is the limit of the scores of `greedy` when only the diagonal of H is trusted.
    """
    return W.double().square().sum(0) * H.diagonal().double()


def by_score(
    score: Float[Tensor, " columns"],
    units: Units = COLUMNS,
    alive: Bool[Tensor, " columns"] | None = None,
) -> Removal:
    """Order units by the sum of their columns' scores.

    Of units with the same score those go first that have no column `alive`.
    """
    width, partition = units.width, units.partition
    score = score.view(-1, width).sum(1)
    if alive is None:
        ranked = score.argsort(stable=True)
    else:
        idle_first = alive.view(-1, width).any(1).int().argsort(stable=True)
        ranked = idle_first[score[idle_first].argsort(stable=True)]
    turn = torch.zeros(len(score), dtype=torch.long, device=score.device)  # within the group
    if partition is not None:
        place = ranked.argsort()
        for group in cast(Tensor, partition.unique()):
            members = (partition == group).nonzero().flatten().to(score.device)
            turn[members] = place[members].argsort().argsort()
    order = ranked[turn[ranked].argsort(stable=True)][: units.steps]
    return Removal(order, score[order])


def by_wanda(W: Matrix, H: Moment, units: Units = COLUMNS) -> Removal:
    """Order units by `wanda`, dead inputs in front of weights that are zero."""
    return by_score(wanda(W, H), units, live(H))


def greedy(
    W: Matrix,
    H: Moment,
    units: Units = COLUMNS,
    damp: float = 0.0,
    block: int = 128,
    grouped_cholesky: bool = False,
) -> Removal:
    """Remove units one by one, each time the one that costs least.

    Algorithm 1 of arXiv:2302.04089, for a unit S among those left, with Hinv = inv(H + damp
    diag(H)):

        score(S) = tr(W_S inv(Hinv_SS) W_S^T)
        W    -= W_S inv(Hinv_SS) Hinv_S,:        Hinv -= Hinv_:,S inv(Hinv_SS) Hinv_S,:

    H is the raw moment: units that have dead inputs alone leave first, in turn, and cost nothing;
    weights on dead inputs do not count. With `grouped_cholesky` units are chosen by the score of
    SlimGPT (arXiv:2412.18110) instead, sum_j |W_j|^2 / L_jj^2 over the columns j of S with L L^T =
    Hinv_SS, which leaves out how columns of a unit make up for each other; `score` still holds the
    exact increases.

    Only W^T W enters a score, so the pass works on G = W^T W instead of W, and both downdates are
    of low rank: with L L^T = Hinv_SS, U = inv(L) Hinv_S,:, Q = inv(L) G_S,: - (inv(L) G_SS
    inv(L)^T) U / 2,

        Hinv -= U^T U                            G -= Q^T U + U^T Q

    so the rows U, Q of up to `block` columns are gathered and applied by one matrix product; now
    and then removed columns leave the matrices. The order is that of the unblocked algorithm. The
    work is 2 columns^3 flop in float64 in place of 2 (columns + rows) columns^2 of memory traffic.
    """
    columns, width = W.shape[1], units.width
    count = columns // width
    assert count * width == columns, f"{columns} columns are not whole units of {width}"
    steps = count if units.steps is None else units.steps
    unit = torch.arange(count, device=W.device)
    if not steps:
        return Removal(unit[:0], unit[:0].double())
    idle = ~live(H).view(count, width).any(1)
    W, Hinv = _prepared(W, H, damp)
    p = _Pass(Hinv, W.T @ W, width, unit, idle, torch.zeros_like(idle))
    left = None if units.partition is None else torch.bincount(units.partition.cpu())

    order: list[Tensor] = []
    score: list[Tensor] = []
    taken = 0
    while taken < steps:
        due = min(steps - taken, max(block // width, 1))
        if width == 1 and units.partition is None:
            U, Q, places, scores = _columns(p, due)
        else:
            group = None if units.partition is None else units.partition.to(W.device)[p.unit]
            U, Q, places, scores = _units(p, due, group, left, grouped_cholesky)
        order.append(p.unit[places])
        score.append(scores)
        taken += due
        p.remove_(places, U, Q)
    return Removal(torch.cat(order), torch.cat(score))


@dataclass
class _Pass:
    """What a greedy pass works on; a *place* is a unit's in the matrices, which shrink."""

    Hinv: Moment
    G: Moment
    width: int
    unit: Int[Tensor, " places"]  # at each place
    idle: Bool[Tensor, " places"]  # dead inputs alone
    gone: Bool[Tensor, " places"]

    def remove_(
        self,
        places: Int[Tensor, " picked"],
        U: Float[Tensor, "rows columns"],
        Q: Float[Tensor, "rows columns"],
    ) -> None:
        """Downdate by the rows of the units at `places`, which are gone then."""
        self.gone[places] = True
        self.Hinv.addmm_(U.T, U, alpha=-1)
        self.G.addmm_(torch.cat([Q, U]).T, torch.cat([U, Q]), alpha=-1)
        if self.gone.sum() > len(self.gone) // 4:  # a smaller matrix is worth the copy
            stay = (~self.gone).repeat_interleave(self.width).nonzero().flatten()
            self.Hinv, self.G = (_gathered_(A, stay, stay) for A in (self.Hinv, self.G))
            there = ~self.gone
            self.unit, self.idle, self.gone = self.unit[there], self.idle[there], self.gone[there]


def _prepared(W: Matrix, H: Moment, damp: float) -> tuple[Matrix, Moment]:
    """Return W without the weights on dead inputs, and inv(H + damp diag(H)), in float64."""
    L = factored(lambda: damped_(H.to(torch.float64, copy=True), damp))
    Hinv = torch.cholesky_inverse(L, out=L).mT  # symmetric, and contiguous so
    W = W.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    return W.masked_fill_(~live(H), 0.0), Hinv


def _gathered_(
    A: Float[Tensor, "n m"], rows: Int[Tensor, " kept"], columns: Int[Tensor, " left"]
) -> Float[Tensor, "kept left"]:
    """Return rows and columns of a matrix, both ascending, in the memory that it had."""
    numbers, width = A.view(-1), len(columns)
    for first in range(0, len(rows), PANEL):  # what is written lies before what is yet to be read
        some = A[rows[first : first + PANEL]][:, columns]
        numbers[first * width :][: some.numel()].view_as(some).copy_(some)
    return numbers[: len(rows) * width].view(len(rows), width)


Picked = tuple[
    Float[Tensor, "rows columns"],  # U
    Float[Tensor, "rows columns"],  # Q
    Int[Tensor, " picked"],  # places, in the order in which they leave
    Float[Tensor, " picked"],  # scores
]


def _columns(p: _Pass, count: int) -> Picked:
    """Pick `count` columns one by one, by the fewest and leanest operations per column."""
    Hinv, G, gone, idle = p.Hinv, p.G, p.gone, p.idle
    U, Q = Hinv.new_empty(2, count, len(Hinv))
    h = torch.where(gone, 1.0, Hinv.diagonal())
    g = torch.where(idle, -torch.inf, G.diagonal())  # no rounding of another's score comes first
    g = torch.where(gone, torch.inf, g)
    places: list[int] = []
    scores: list[Tensor] = []
    for row in range(count):
        j = int(torch.argmin(g / h))
        past, u_j = U[:row], U[:row, j]
        u = (Hinv[j] - u_j @ past).div_(h[j].sqrt())
        q = (G[j] - u_j @ Q[:row]).sub_(Q[:row, j] @ past).div_(u[j])
        s = q[j] / u[j]
        q.addcmul_(u, s, value=-0.5)
        U[row], Q[row] = u, q
        h.addcmul_(u, u, value=-1)
        g.addcmul_(u, q, value=-2)
        h[j], g[j] = 1, torch.inf
        places.append(j)
        scores.append(s)
    return U, Q, torch.tensor(places, device=Hinv.device), torch.stack(scores)


def _units(
    p: _Pass,
    count: int,
    group: Int[Tensor, " units"] | None,
    left: Int[Tensor, " groups"] | None,
    grouped_cholesky: bool,
) -> Picked:
    """Pick `count` units one by one; where there are groups, from those that most are `left` of.

    `left` is counted down.
    """
    Hinv, G, width = p.Hinv, p.G, p.width
    U, Q = Hinv.new_empty(2, count * width, len(Hinv))
    h, g = _blocks(Hinv, width), _blocks(G, width)
    gone = p.gone.clone()
    places: list[int] = []
    scores: list[Tensor] = []
    for step in range(count):
        rows = step * width
        due = ~gone
        if group is not None and left is not None:
            due &= (left == left.max()).to(group.device)[group]
        cost = torch.where(p.idle, -torch.inf, _score(h, g, gone, grouped_cholesky))
        cost = torch.where(due, cost, torch.inf)
        j = int(cost.argmin())
        S = slice(j * width, (j + 1) * width)
        u_S, q_S = U[:rows, S].T, Q[:rows, S].T
        Hinv_S = Hinv[S] - u_S @ U[:rows]
        G_S = G[S] - q_S @ U[:rows] - u_S @ Q[:rows]
        L = cholesky(Hinv_S[:, S])
        u, q = (_forward(L, row) for row in (Hinv_S, G_S))
        s = _forward(L, q[:, S].T)
        q = q - s @ u / 2
        U[rows : rows + width], Q[rows : rows + width] = u, q
        h, g = h - _cross(u, u), g - _cross(q, u) - _cross(u, q)
        gone[j] = True
        if group is not None and left is not None:
            left[int(group[j])] -= 1
        places.append(j)
        scores.append(s.trace())
    return U, Q, torch.tensor(places, device=Hinv.device), torch.stack(scores)


def batched(W: Matrix, H: Moment, sizes: Sequence[int], damp: float = 0.0) -> Removal:
    """Remove columns in groups of the given sizes: Batched Greedy Pruning of SlimGPT.

    Algorithm 1 of arXiv:2412.18110: the columns of the least |W_j|^2 / Hinv_jj leave together, then
    W and Hinv are updated as in `greedy`, and dead inputs are treated as there. With all sizes 1 it
    is `greedy` for columns. The scores of a group are the increases in the order in which its
    columns are eliminated.
    """
    column = torch.arange(W.shape[1], device=W.device)  # at each place of the matrices
    if not sizes:
        return Removal(column[:0], column[:0].double())
    idle = ~live(H)
    W, Hinv = _prepared(W, H, damp)
    order: list[Tensor] = []
    score: list[Tensor] = []
    for size in sizes:
        cost = torch.where(idle, -torch.inf, W.square().sum(0) / Hinv.diagonal())
        S = cost.argsort(stable=True)[:size]
        L = cholesky(Hinv[S][:, S])
        E = _forward(L, W[:, S].T)
        U = _forward(L, Hinv[S])
        order.append(column[S])
        score.append(E.square().sum(1))
        there = torch.ones(len(column), dtype=torch.bool, device=W.device)
        there[S] = False
        stay = there.nonzero().flatten()
        column, idle, U = column[stay], idle[stay], U[:, stay]
        W = _gathered_(W, torch.arange(len(W), device=W.device), stay).addmm_(E.T, U, alpha=-1)
        Hinv = _gathered_(Hinv, stay, stay).addmm_(U.T, U, alpha=-1)
        del E, U  # the next group's take their place
    return Removal(torch.cat(order), torch.cat(score))


def _blocks(A: Moment, width: int) -> Float[Tensor, "units width width"]:
    """Return the diagonal blocks of A."""
    units = A.shape[0] // width
    return A.view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()


def _cross(
    u: Float[Tensor, "width columns"], v: Float[Tensor, "width columns"]
) -> Float[Tensor, "units width width"]:
    """Return the diagonal blocks of u^T v."""
    width = len(u)
    if width == 1:
        return (u * v).view(-1, 1, 1)
    return u.view(width, -1, width).permute(1, 2, 0) @ v.view(width, -1, width).permute(1, 0, 2)


def _score(
    h: Float[Tensor, "units width width"],
    g: Float[Tensor, "units width width"],
    gone: Bool[Tensor, " units"],
    grouped_cholesky: bool,
) -> Float[Tensor, " units"]:
    """Return tr(inv(Hinv_SS) G_SS) of every unit, or sum_j G_jj / L_jj^2 with L L^T = Hinv_SS."""
    if h.shape[1] == 1:
        return (g / h).flatten()
    h = torch.where(gone.view(-1, 1, 1), torch.eye(h.shape[1], dtype=h.dtype, device=h.device), h)
    L = cholesky(h)
    if grouped_cholesky:
        return (g.diagonal(dim1=1, dim2=2) / L.diagonal(dim1=1, dim2=2).square()).sum(1)
    return torch.cholesky_solve(g, L).diagonal(dim1=1, dim2=2).sum(1)
