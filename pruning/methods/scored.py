"""Methods that only order: each unit has a score, and the weights that are kept stay."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.leveled import Leveled

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.calibration.moment import Split
    from pruning.models.shape import Shape
    from pruning.models.sites import Site
    from pruning.solver.experts import ExpertSite
    from pruning.solver.levels import SiteLevels


@dataclass
class Scored(Leveled):
    """Units leave by a score of their own, the lowest first; search and shrinking are shared."""

    centred: ClassVar[bool] = False  # the score is of covariances instead of second moments
    bias = False  # what removed columns gave on average stays, as a bias

    def expert_scores(self, given: "ExpertSite") -> "Tensor":
        """Return the sum of the scores of each expert's channels."""
        import torch

        def score(index: int, site: "Site") -> "Tensor":
            moment, W = given.split(index).all, given.weight(index)
            H = moment.covariance if self.centred else moment.H
            return self.score(site, W.to(H.dtype), H).sum()

        return torch.stack([score(*numbered) for numbered in enumerate(given.site.each)])

    @abstractmethod
    def score(self, site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
        """Return the score of every column of W, [columns]; a unit has the sum of its columns'."""

    def site_levels(
        self, site: "Site", W: "Tensor", split: "Split", shapes: "Sequence[Shape]"
    ) -> "SiteLevels":
        """Order the units by score; judge every level by held-out error."""
        import torch

        from pruning.calibration.moment import Moment
        from pruning.solver.levels import SiteLevels
        from pruning.solver.obs import Removal, Units, by_score
        from pruning.solver.ordering import NO_UPDATE, HeldOut, check_finite, kept_units

        check_finite(site, W, split)
        W = W.to(split.fit.H.dtype)

        def remove(W: "Tensor", H: "Tensor", units: Units) -> Removal:
            return by_score(self.score(site, W, H), units)

        def order(moment: Moment) -> "list[Tensor]":
            H = moment.covariance if self.centred else moment.H
            return kept_units(site, W, H, shapes, remove, NO_UPDATE)

        judge = HeldOut(site, W, split, self.bias)
        losses = [judge([keep], NO_UPDATE) for keep in order(split.fit)]
        final = torch.stack(order(split.all))
        return SiteLevels(list(shapes), final, losses, NO_UPDATE, type(self).__name__, self.bias)
