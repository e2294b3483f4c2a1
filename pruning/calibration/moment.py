"""The moments of one site, and the running sums that they come from."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, distributed

PANEL = 512  # rows that a sum is added to at once
STORED = 128  # rows that a stored moment has from the diagonal on


@dataclass
class Moment:
    """Means over tokens of one site's inputs x, and of the outputs y that it should have."""

    H: Float[Tensor, "columns columns"]  # E[x x^T]
    mean: Float[Tensor, " columns"]  # E[x]
    target: Float[Tensor, "rows columns"] | None = None  # E[y x^T]; None: y = W x
    variance: Float[Tensor, " columns"] | None = None  # E[(x - E[x])^2]; None: as H and mean say

    @property
    def covariance(self) -> Float[Tensor, "columns columns"]:
        """Return E[(x - E[x]) (x - E[x])^T]; its diagonal is exact also beside a large mean."""
        covariance = self.H - self.mean[:, None] * self.mean
        if self.variance is not None:
            covariance.diagonal().copy_(self.variance)
        return covariance

    def mixed(self, other: "Moment", share: float) -> "Moment":
        """Return the moment of both texts' tokens, of whose weight `share` is the other's."""

        def mix(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            if a is None or b is None:
                return None
            mixed = torch.empty_like(a)
            for rows in zip(mixed.split(PANEL), a.split(PANEL), b.split(PANEL), strict=True):
                torch.add(rows[1] * (1 - share), rows[2] * share, out=rows[0])
            return mixed

        H, mean = mix(self.H, other.H), mix(self.mean, other.mean)
        assert H is not None
        assert mean is not None
        variance = mix(self.variance, other.variance)
        if variance is not None:
            variance += share * (1 - share) * (self.mean - other.mean).square()
        return Moment(H, mean, mix(self.target, other.target), variance)


def packed(H: Float[Tensor, "columns columns"]) -> Float[Tensor, " stored"]:
    """Return a symmetric matrix in little more than half of its numbers.

    Of every `STORED` rows those columns that do not lie left of them, one after the other.
    """
    stored, start = H.new_empty(stored_numbers(len(H))), 0
    for top in range(0, len(H), STORED):
        rows = H[top : top + STORED, top:]
        stored[start : start + rows.numel()].view(rows.shape).copy_(rows)
        start += rows.numel()
    return stored


def stored_numbers(columns: int) -> int:
    """Return how many numbers `packed` makes of a matrix."""
    tops = range(0, columns, STORED)
    return sum(min(STORED, columns - top) * (columns - top) for top in tops)


def unpacked(stored: Float[Tensor, " stored"], columns: int) -> Float[Tensor, "columns columns"]:
    """Return the matrix that `packed` was given."""
    H, start = stored.new_empty(columns, columns), 0
    for top in range(0, columns, STORED):
        rows = min(STORED, columns - top)
        end = start + rows * (columns - top)
        H[top : top + rows, top:] = panel = stored[start:end].view(rows, -1)
        H[top:, top : top + rows] = panel.T
        start = end
    return H


@dataclass
class Split:
    """Moments of the tokens to solve with, and of those held out to judge by."""

    fit: Moment
    held: Moment
    share: float  # held-out part of the total weight

    @property
    def all(self) -> Moment:
        """Return the moment of all tokens."""
        return self.fit.mixed(self.held, self.share)

    def merged_(self) -> Moment:
        """Return the moment of all tokens; the matrices of the split are used up and freed."""
        merged = self.all
        nothing = merged.H.new_empty(0, 0)
        self.fit.H = self.held.H = nothing
        return merged


@contextmanager
def packed_away(split: Split) -> Generator[None]:
    """Keep the two matrices of a split in the memory of one while it is not looked at."""
    moments = (split.fit, split.held)
    for moment in moments:
        moment.H = packed(moment.H)
    yield
    for moment in moments:
        moment.H = unpacked(moment.H, len(moment.mean))


class Accumulator:
    """The running sums of w d and of w d d^T, of the latter only the upper panels.

    d = x - c, c the mean of the first batch: the sums hold what varies, so that no mean, however
    large, drowns it. Those of d d^T are then accurate to 1e-6 in float32, in half of the memory of
    float64; those of d are in float64, added batch by batch.
    """

    def __init__(self, columns: int, device: torch.device):
        self.sum = torch.zeros(columns, columns, device=device)
        self.first = torch.zeros(columns, device=device, dtype=torch.float64)
        self.centre: Float[Tensor, " columns"] | None = None
        self.target: Tensor | None = None
        self.weight = 0.0

    def add_(
        self,
        X: Float[Tensor, "tokens columns"],
        w: Float[Tensor, " tokens"],
        Y: Float[Tensor, "tokens rows"] | None = None,
    ) -> None:
        """Add tokens X with weights w >= 0; a weight of 0 (padding) leaves a token out."""
        X, root = X.float(), w.sqrt()
        if self.centre is None:
            self.centre = w @ X / w.sum().clamp(min=1e-30)
        D = (X - self.centre) * root[:, None]
        self.first += root @ D
        for left in range(0, X.shape[1], PANEL):
            panel = slice(left, left + PANEL)
            self.sum[panel, left:].addmm_(D[:, panel].T, D[:, left:])
        if Y is not None:
            products = (Y.float() * w[:, None]).T @ X
            self.target = products if self.target is None else self.target.add_(products)
        self.weight += float(w.double().sum())

    def add_processes_(self) -> None:
        """Add the sums of all processes of a group; alone, there is nothing to add.

        Each has a centre c of its own. Around another one c' tokens lie at d + s, with s = c - c',
        and sum w (d + s)(d + s)^T = sum w d d^T + s g^T + g s^T, where g = sum w d + s sum w / 2.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        assert self.target is None, "targets are of what one process has pruned"
        weight = self.first.new_tensor([self.weight])
        own = torch.zeros_like(self.first) if self.centre is None else self.centre.double()
        total, common = weight.clone(), own * weight
        for values in (total, common):
            distributed.all_reduce(values)
        self.centre = (common / total.clamp(min=1e-30)).float()
        s = own - self.centre
        g = self.first + s * weight / 2
        self.first += s * weight
        s, g = s.float(), g.float()
        for left in range(0, len(s), PANEL):
            panel = slice(left, left + PANEL)
            self.sum[panel, left:].addr_(s[panel], g[left:]).addr_(g[panel], s[left:])
        for values in (self.first, self.sum):
            distributed.all_reduce(values)
        self.weight = float(total)

    def mean(self) -> Moment:
        """Return the weighted means; the sums are used up, since they may take much memory."""
        weight = max(self.weight, 1e-30)
        moved = self.first / weight
        mean = (moved if self.centre is None else moved + self.centre).float()
        H = self.sum.div_(weight).addr_(moved.float(), moved.float(), alpha=-1)
        variance = H.diagonal().clamp(min=0)
        _mirror_(H.addr_(mean, mean))
        target = None if self.target is None else self.target.div_(weight)
        return Moment(H, mean, target, variance)


def _mirror_(H: Float[Tensor, "columns columns"]) -> None:
    """Write what is above the diagonal below it."""
    for left in range(0, len(H), PANEL):
        panel, below = slice(left, left + PANEL), slice(left + PANEL, None)
        corner = H[panel, panel].triu()
        H[panel, panel] = corner + corner.triu(1).T
        H[below, panel] = H[panel, below].T
