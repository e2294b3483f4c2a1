"""FLAP: columns whose inputs hardly fluctuate leave, and their mean stays as a bias."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.scored import Scored

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.models.sites import Site


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
