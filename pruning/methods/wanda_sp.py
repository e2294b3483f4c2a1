"""Wanda-sp: the scores of Wanda, summed over structures."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.scored import Scored

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.models.sites import Site


@dataclass
class WandaSp(Scored):
    """The sum over rows i of |W_ij| sqrt(E[x_j^2]): structured Wanda, a baseline of FLAP."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2312.11983"

    name: str = "wanda_sp"

    def score(self, site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
        """Return sum_i |W_ij| sqrt(H_jj)."""
        return W.abs().sum(0) * H.diagonal().clamp(min=0).sqrt()
