"""Methods that only order: each unit has a score, and the weights that are kept stay."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.leveled import Leveled

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.calibration.moments import Split
    from pruning.latency.table import Shape
    from pruning.models.sites import Site
    from pruning.solver.levels import SiteLevels


@dataclass
class Scored(Leveled):
    """Units leave by a score of their own, the lowest first; search and shrinking are shared."""

    centred: ClassVar[bool] = False  # the score is of covariances instead of second moments
    bias = False  # what removed columns gave on average stays, as a bias

    @abstractmethod
    def score(self, site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
        """Return the score of every column of W, [columns]; a unit has the sum of its columns'."""

    def site_levels(
        self, site: "Site", W: "Tensor", split: "Split", shapes: "Sequence[Shape]"
    ) -> "SiteLevels":
        """Order the units by score; judge every level by held-out error."""
        from pruning.solver.ordering import scored_levels

        return scored_levels(self, site, W, split, shapes)
