"""Magnitude: units with small weights in the output projection leave first."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.scored import Scored

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.models.sites import Site


@dataclass
class Magnitude(Scored):
    """The norm |W_j| of every column, as the structured magnitude baseline of FLAP has it."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2312.11983"

    name: str = "magnitude"

    def score(self, site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
        """Return |W_j|."""
        return W.norm(dim=0)
