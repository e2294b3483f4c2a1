"""Levels that are ranks: each projection a product of two, its outputs' main components kept."""

# torch.linalg has no types; matrices in a paper's letters change as it says
# pyright: reportUnknownMemberType=false, reportConstantRedefinition=false

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from pruning.calibration.moment import Split
from pruning.models.shape import Shape
from pruning.models.shrink import factor_
from pruning.models.sites import Site, projection, weight
from pruning.solver.levels import Levels, SiteLevels
from pruning.solver.ordering import check_finite


def components(
    W: Float[Tensor, "rows columns"], H: Float[Tensor, "columns columns"] | None
) -> Float[Tensor, "rows rank"]:
    """Return the directions of the output y = W x by their share of E|y|^2, the largest first.

    These are the left singular vectors U of W L, where H = E[x x^T] = L L^T. Of all products of
    rank r, B A with B = U_r and A = U_r^T W has the least E|W x - B A x|^2, the sum of the other
    squared singular values: the truncated SVD whitened by L, with no need to invert L. Without H it
    is the plain SVD of W.
    """
    Q, R = cast(tuple[Tensor, Tensor], torch.linalg.qr(W))
    _, vectors = cast(
        tuple[Tensor, Tensor], torch.linalg.eigh(R @ R.T if H is None else R @ H @ R.T)
    )
    return Q @ vectors.flip(1)


def rank_levels(
    site: Site, W: Float[Tensor, "rows columns"], split: Split, shapes: Sequence[Shape], plain: bool
) -> SiteLevels:
    """Return the levels of a projection at these ranks, judged by held-out error."""
    check_finite(site, W, split)
    W, held = W.double(), split.held.H.double()
    U = components(W, None if plain else split.fit.H.double())
    A = U.T @ W
    energies = ((A @ held) * A).sum(1)  # of every direction in the held-out outputs
    ranks = torch.tensor([shape.units for shape in shapes])
    keeps = torch.arange(site.units) < ranks[:, None]
    loss = [float(energies[rank:].sum() / energies.sum().clamp(min=1e-300)) for rank in ranks]
    return SiteLevels(list(shapes), keeps, loss, float("inf"), "plain" if plain else "whitened")


class Ranks(Levels):
    """The ranks of all projections; the two factors are computed when they are asked for."""

    def drafts(self, dense: PreTrainedModel) -> bool:
        """Tell that models are timed with any rows and columns as factors."""
        return True

    def factors(
        self, site: Site, level: int, W: Float[Tensor, "rows columns"], fit: bool = False
    ) -> tuple[Float[Tensor, "rank columns"], Float[Tensor, "rows rank"]]:
        """Return A and B of a level, from all calibration tokens or from those to `fit` only."""
        moments, levels = self._moments, self._of[site]
        moment = moments.fit(site, W.device) if fit else moments.all(site, W.device)
        H = moment.H.double()
        U = components(W.double(), None if levels.score == "plain" else H)
        U = U[:, : int(levels.keeps[level].sum())]
        return (U.T @ W.double()).to(W.dtype), U.to(W.dtype)

    def trial_weight(
        self, site: Site, level: int, W: Float[Tensor, "rows columns"]
    ) -> tuple[Float[Tensor, "rows columns"], None]:
        """Return the product of a level's factors, found without the held-out tokens."""
        A, B = self.factors(site, level, W, fit=True)
        return B @ A, None

    def _resize_(self, pruned: PreTrainedModel, levels: dict[Site, int]) -> None:
        """Put two projections in the place of each one whose rank falls, any rows and columns."""
        for site, level in levels.items():
            old, rank = projection(pruned, site), int(self._of[site].keeps[level].sum())
            W = weight(old)
            factor_(pruned, site, W[:rank], W[:, :rank], old.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def _solve_(
        self, dense: PreTrainedModel, pruned: PreTrainedModel, site: Site, level: int
    ) -> None:
        """Put in the factors of a level."""
        old = projection(dense, site)
        factor_(pruned, site, *self.factors(site, level, weight(old)), old.bias)  # type: ignore[arg-type]
