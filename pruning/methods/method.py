"""What a pruning method is: the config group `method`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.calibration.moments import Moment
    from pruning.latency.table import Shape
    from pruning.methods.levels import SiteLevels
    from pruning.models.sites import Site


@dataclass
class Method(ABC):
    """A post-training method: it turns a site's weight and moments into levels."""

    paper: ClassVar[str]  # URL
    name: str = MISSING

    @abstractmethod
    def site_levels(
        self, site: "Site", W: "Tensor", moment: "Moment", shapes: "Sequence[Shape]"
    ) -> "SiteLevels":
        """Return the levels of one site at the given shapes."""
