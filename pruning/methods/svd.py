"""SVD: projections become products of low rank, without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.leveled import Leveled
from pruning.search.search import Guided

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from pruning.calibration.moment import Split
    from pruning.models.shape import Shape
    from pruning.models.sites import Site
    from pruning.solver.levels import Levels, SiteLevels


@dataclass
class SVD(Leveled):
    """The truncated SVD of W, whitened by the moments of its inputs (SVD-LLM).

    Levels are ranks, and only those that this hardware runs faster than the dense projection.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.07378"
    search_type: ClassVar[type[Guided]] = Guided
    supports_gradual: ClassVar[bool] = False

    name: str = "svd"
    modules: str = "*"  # glob of the projections' paths within a block
    whiten: bool = True  # least error of the outputs on the calibration text, or of the weights

    def sites(self, model: "PreTrainedModel") -> "list[Site]":
        """List the projections."""
        from pruning.models.sites import chosen_linears

        return chosen_linears(model, self.modules)

    def levels(self) -> "type[Levels]":
        """Return what makes models of ranks."""
        from pruning.solver.ranks import Ranks

        return Ranks

    def site_levels(
        self, site: "Site", W: "Tensor", split: "Split", shapes: "Sequence[Shape]"
    ) -> "SiteLevels":
        """Keep the main components of the outputs; judge every rank by held-out error."""
        from pruning.solver.ranks import rank_levels

        return rank_levels(site, W, split, shapes, plain=not self.whiten)
