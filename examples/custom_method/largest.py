"""A method outside of the package: units whose output columns have small peaks leave first."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.scored import Scored

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.models.sites import Site


@dataclass
class Largest(Scored):
    """The largest |W_ij| of a column, to a power."""

    paper: ClassVar[str] = "https://arxiv.org/abs/1608.08710"

    name: str = "largest"
    power: float = 1.0  # of the peaks, before those of a head are added up

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power <= 0:
            raise ValueError(f"method.power={self.power} must be above 0")

    def score(self, site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
        """Return max_i |W_ij| of every column j."""
        return W.abs().amax(dim=0) ** self.power
