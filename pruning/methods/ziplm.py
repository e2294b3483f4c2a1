"""ZipLM: inference-aware structured pruning (arXiv:2302.04089)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.leveled import Leveled

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.calibration.moments import Split
    from pruning.latency.table import Shape
    from pruning.models.sites import Site
    from pruning.solver.levels import SiteLevels


class Score(StrEnum):
    """What orders the units of a site."""

    obs = "obs"  # exact greedy OBS, the published method
    wanda = "wanda"  # |w|^2 E[x^2] (arXiv:2306.11695), needs far fewer calibration tokens
    auto = "auto"  # per site, the one with the smaller held-out error


@dataclass
class ZipLM(Leveled):
    """Structured OBS levels on dense activations.

    Differs from the paper where few calibration tokens make it overfit: the ridge of the weight
    update and (with score auto) the order are chosen per site by the error on held-out tokens, and
    the losses of all levels are held-out errors.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2302.04089"

    name: str = "ziplm"
    attention_score: Score = Score.obs  # order of the heads
    # order of the channels; with 262144 tokens obs is better, see docs/benchmarks.md
    ffn_score: Score = Score.wanda
    damp: float = 0.01  # ridge of the obs score, as a share of each input's energy
    # candidates for the ridge of the update, ascending; per site by held-out error
    ridges: list[float] = field(
        default_factory=lambda: [0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, math.inf]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.damp, float) and self.damp < 0:
            raise ValueError(f"method.damp={self.damp} must be at least 0")
        if isinstance(self.ridges, list) and (
            not self.ridges or sorted(self.ridges) != self.ridges or self.ridges[0] < 0
        ):
            raise ValueError(f"method.ridges={self.ridges} must be ascending and not negative")

    def site_levels(
        self, site: "Site", W: "Tensor", split: "Split", shapes: "Sequence[Shape]"
    ) -> "SiteLevels":
        """Order the units, choose the ridge, and judge every level, all by held-out error."""
        from pruning.solver.ordering import site_levels

        return site_levels(self, site, W, split, shapes)
