"""What rules of papers share: orders of units, a ridge, a judge on held-out tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pruning.calibration.moment import Split
from pruning.models.shape import Heads, Shape
from pruning.models.sites import Kind, Site
from pruning.solver.obs import (
    Removal,
    Units,
    change,
    energy,
    least_squares,
)

REFERENCES = (0.8, 0.5)  # shares of the units kept at which scores and ridges are compared
NO_UPDATE = float("inf")  # the ridge of it

Keep = Bool[Tensor, " units"]
Remove = Callable[[Tensor, Tensor, Units], Removal]


@dataclass(frozen=True)
class Update:
    """How the kept weights of a site are solved."""

    ridge: float
    share: float  # of the targets y; the rest is W x

    @property
    def tensor(self) -> Float[Tensor, " numbers"]:
        """Return its numbers, to lie in a file of tensors."""
        return torch.tensor([self.ridge, self.share], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, numbers: Float[Tensor, " numbers"]) -> "Update":
        """Return the update that gave these numbers."""
        return cls(float(numbers[0]), float(numbers[1]))


def check_finite(site: Site, W: Float[Tensor, "rows columns"], split: Split) -> None:
    """Raise ValueError where a weight, as the model has it, or a moment is not finite."""
    if not torch.isfinite(W).all():
        raise ValueError(f"model: weights of {site.name} are not finite; give a sound checkpoint")
    moments = (split.fit, split.held)
    tensors = [t for m in moments for t in (m.H, m.mean, m.target) if t is not None]
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        used = str(W.dtype).removeprefix("torch.")
        remedy = f"use model.dtype=float32, not {used}, or " if used != "float32" else "use "
        raise ValueError(
            f"calibration: the second moment of {site.name}'s inputs is not finite, the "
            f"activations overflow on this text; {remedy}other calibration text"
        )


class HeldOut:
    """Judges what a site keeps by the relative output error on the held-out tokens."""

    def __init__(
        self, site: Site, W: Float[Tensor, "rows columns"], split: Split, bias: bool = False
    ):
        self.width, self.W = site.width, W.to(split.fit.H.dtype)
        self.split, self.bias = split, bias
        self.whole = energy(self.W, split.held.H)

    def __call__(self, keeps: Sequence[Keep], ridge: float) -> float:
        """Return the sum over levels of the errors of weights solved from the other tokens.

        Where the outputs have targets of their own, up to a constant. What is gone has error 1, as
        its bias is gone too. What is not finite is infinite.
        """
        total, fit = 0.0, self.split.fit
        for keep in keeps:
            columns = keep.repeat_interleave(self.width).to(self.W.device)
            if not columns.any():
                total += 1.0
            elif self.whole <= 0:  # NaN is no loss of 0
                continue
            elif fit.target is not None or not columns.all():
                W_K = least_squares(self.W, fit.H, columns, ridge, fit.target)
                total += self._error(columns, W_K) / self.whole
        return total if math.isfinite(total) else math.inf

    def by_share(self, keep: Keep, ridge: float, shares: Sequence[float]) -> list[float]:
        """Return E|V x - y|^2 - E|y|^2 for the targets y, V solved for each share of them.

        V is linear in the share: two solves give all. What is not finite is infinite.
        """
        fit, columns = self.split.fit, keep.repeat_interleave(self.width).to(self.W.device)
        V, whole = (
            least_squares(self.W, fit.H, columns, ridge, fit.target, share) for share in (0.0, 1.0)
        )
        D, held = whole - V, self.split.held
        assert held.target is not None
        K = columns.nonzero().flatten()
        H, T = held.H[K[:, None], K], held.target[:, K]
        VH, DH = V @ H, D @ H
        start = float(torch.sum((VH - 2 * T) * V))
        slope, curvature = 2 * float(torch.sum((VH - T) * D)), float(torch.sum(DH * D))
        errors = [start + (slope + curvature * share) * share for share in shares]
        return [error if math.isfinite(error) else math.inf for error in errors]

    def _error(self, columns: Tensor, W_K: Tensor) -> float:
        """Return E|V x - W x + db|^2, or E|V x - y|^2 - E|y|^2 for targets y.

        A bias db = (W - V) E[x], of the tokens that are not held out, is there if it is in use.
        """
        held = self.split.held
        if held.target is not None:
            V = change(torch.zeros_like(self.W), columns, W_K)
            return energy(V, held.H) - 2 * float(torch.sum(held.target * V))
        dW = change(self.W, columns, W_K)
        error = energy(dW, held.H)
        if self.bias and dW.any():
            db = -(dW @ self.split.fit.mean)
            error += float(2 * (dW @ held.mean) @ db + db @ db)
        return error


def choose_ridge(judge: HeldOut, keeps: Sequence[Keep], ridges: Sequence[float]) -> float:
    """Return the candidate of the least held-out error, summed over the levels `keeps`.

    All are tried, since the error may fall again behind a rise; of equal ones the largest is taken.
    """
    return min(reversed(ridges), key=lambda ridge: judge(keeps, ridge))


def choose_update(
    judge: HeldOut, keep: Keep, ridges: Sequence[float], shares: Sequence[float]
) -> Update:
    """Return the ridge and the share of the targets with the least held-out error together.

    All are judged against the targets themselves. So at this site, with weights of the other
    tokens, on what the blocks before it now give, none of `shares` with any ridge is better on the
    held-out tokens. Nothing is promised of weights solved from all tokens, of the blocks behind,
    whose inputs change with the choice, or of a perplexity. Of equal ones the largest ridge is
    taken, then the least share. A single share is judged as `choose_ridge` does.
    """
    if len(shares) == 1:
        return Update(choose_ridge(judge, [keep], ridges), shares[0])
    errors = {
        Update(ridge, share): error
        for ridge in reversed(ridges)
        for share, error in zip(shares, judge.by_share(keep, ridge, shares), strict=True)
    }
    return min(errors, key=errors.__getitem__)


def kept_units(
    site: Site,
    W: Float[Tensor, "rows columns"],
    H: Float[Tensor, "columns columns"],
    shapes: Sequence[Shape],
    remove: Remove,
    damp: float,
) -> list[Keep]:
    """Return what each shape keeps, in the order in which `remove` takes units away.

    `damp` is the ridge of the update between KV groups and query heads.
    """
    if site.kind is Kind.FFN:
        narrowest = min(shape.units for shape in shapes if shape.units)
        order = remove(W, H, Units(site.width, site.units - narrowest)).order
        gone = torch.arange(site.units)  # at width 0 also what the pass has not ordered
        return [
            _without(site.units, order[: site.units - shape.units] if shape.units else gone)
            for shape in shapes
        ]
    heads = [shape for shape in shapes if isinstance(shape, Heads)]
    lattice = _lattice(site, W, H, heads, damp, remove)
    return [lattice[shape] for shape in shapes]


def _lattice(
    site: Site,
    W: Tensor,
    H: Tensor,
    shapes: Sequence[Heads],
    damp: float,
    remove: Remove,
) -> dict[Shape, Keep]:
    """Return the kept query heads of these shapes, and of some others.

    Whole KV groups leave first; from each number of groups on, heads leave evenly from all of them,
    scored with the weights and moments that the least-squares update has left.
    """
    per_group = site.units // site.groups
    fewest: dict[int, int] = {}  # heads, of each number of groups that is asked for
    for shape in shapes:
        heads = shape.per_group
        fewest[shape.groups] = min(heads, fewest.get(shape.groups, heads))
    kept: dict[Shape, Keep] = {Heads(0, 0): torch.zeros(site.units, dtype=torch.bool)}
    fewest.pop(0, None)
    leaving = site.groups - min(fewest, default=site.groups)
    groups = remove(W, H, Units(per_group * site.width, leaving)).order
    for left, least in fewest.items():
        keep = _without(site.groups, groups[: site.groups - left]).repeat_interleave(per_group)
        kept[Heads(left, per_group)] = keep
        if least == per_group:
            continue
        columns = keep.repeat_interleave(site.width).to(W.device)
        W_K, H_K = least_squares(W, H, columns, damp), H[columns][:, columns]
        partition = torch.arange(left).repeat_interleave(per_group)
        heads_leave = Units(site.width, left * (per_group - least), partition)
        order = remove(W_K, H_K, heads_leave).order.cpu()
        units = keep.nonzero().flatten()
        for heads in range(per_group - 1, least - 1, -1):
            fewer = keep.clone()
            fewer[units[order[: left * (per_group - heads)]]] = False
            kept[Heads(left, heads)] = fewer
    return kept


def references(site: Site, keeps: list[Keep]) -> list[Keep]:
    """Return the levels nearest the reference shares."""
    shares = torch.tensor([float(keep.sum()) / site.units for keep in keeps])
    partial = torch.where((shares > 0) & (shares < 1), shares, torch.inf)
    if not torch.isfinite(partial).any():
        return []
    return [
        keeps[i] for i in sorted({int((partial - share).abs().argmin()) for share in REFERENCES})
    ]


def _without(units: int, removed: Int[Tensor, " removed"]) -> Keep:
    keep = torch.ones(units, dtype=torch.bool)
    keep[removed.cpu()] = False
    return keep
