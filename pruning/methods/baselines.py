"""Baselines of one score each; weights that are kept stay as they are."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.scored import Scored

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.models.sites import Site


@dataclass
class Random(Scored):
    """Units leave in an order that depends on nothing but a seed."""

    paper: ClassVar[str] = "https://arxiv.org/abs/1801.10447"

    name: str = "random"
    seed: int = 0  # of the order

    def score(self, site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
        """Return random numbers, the same for the same seed and site."""
        import torch

        name = hashlib.sha256(f"{self.seed} {site.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name[:4], "big"))
        return torch.rand(W.shape[1], generator=generator).to(W.device)


@dataclass
class Magnitude(Scored):
    """The norm |W_j| of every column, as the structured magnitude baseline of FLAP has it."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2312.11983"

    name: str = "magnitude"

    def score(self, site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
        """Return |W_j|."""
        return W.norm(dim=0)


@dataclass
class WandaSp(Scored):
    """The sum over rows i of |W_ij| sqrt(E[x_j^2]): structured Wanda, a baseline of FLAP."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2312.11983"

    name: str = "wanda_sp"

    def score(self, site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
        """Return sum_i |W_ij| sqrt(H_jj)."""
        return W.abs().sum(0) * H.diagonal().clamp(min=0).sqrt()


@dataclass
class Flap(Scored):
    """The weighted fluctuation |W_j|^2 Var(x_j), for heads the sum of its squares.

    FLAP compares standardised scores of all sites by one threshold; here the search decides how
    much each site gives, as for every method.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2312.11983"
    centred: ClassVar[bool] = True

    name: str = "flap"
    bias: bool = True  # what removed columns gave on average stays, as a bias

    def score(self, site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
        """Return |W_j|^2 Var(x_j), squared for attention."""
        from pruning.models.sites import Kind

        fluctuation = W.square().sum(0) * H.diagonal().clamp(min=0)
        return fluctuation.square() if site.kind is Kind.ATTENTION else fluctuation
