"""ZipLM: inference-aware structured pruning (arXiv:2302.04089)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.leveled import Leveled
from pruning.methods.method import check_ridges, default_ridges

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.calibration.moment import Split
    from pruning.models.shape import Shape
    from pruning.models.sites import Site
    from pruning.solver.experts import ExpertSite
    from pruning.solver.levels import SiteLevels


class Score(StrEnum):
    """What orders the units of a site."""

    obs = "obs"  # exact greedy OBS, the published method
    wanda = "wanda"  # |w|^2 E[x^2] (arXiv:2306.11695), needs far fewer calibration tokens
    auto = "auto"  # per site, the one with the smaller held-out error


class ExpertScore(StrEnum):
    """What orders the experts of a block."""

    reap = "reap"  # mean over its tokens of gate x norm of its output (arXiv:2510.13999)
    loss = "loss"  # relative error of what the block gives without it


@dataclass
class ZipLM(Leveled):
    """Structured OBS levels on dense activations.

    Differs from the paper where few calibration tokens make it overfit: the ridge of the weight
    update and (with score auto) the order are chosen per site by the error on held-out tokens, and
    the losses of all levels are held-out errors. And with `compensate`, what is gone leaves
    something behind.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2302.04089"

    name: str = "ziplm"
    attention_score: Score = Score.obs  # order of the heads
    # order of the channels; with 262144 tokens obs is better, see docs/benchmarks.md
    ffn_score: Score = Score.wanda
    experts: ExpertScore = ExpertScore.reap  # order of the experts
    damp: float = 0.01  # ridge of the obs score, as a share of each input's energy
    # candidates for the ridge of the update, ascending; per site by held-out error
    ridges: list[float] = field(default_factory=default_ridges)
    compensate: bool = True  # the projection in front of what is gone takes over what that gave

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ridges(self.damp, self.ridges)

    def site_levels(
        self, site: "Site", W: "Tensor", split: "Split", shapes: "Sequence[Shape]"
    ) -> "SiteLevels":
        """Return the levels of a site, with the score and the ridge of the least held-out error.

        Losses are those of levels ordered and solved without the held-out tokens; once they are
        known, the order (as later the weights) is taken from all tokens.
        """
        import torch

        from pruning.models.sites import Kind
        from pruning.solver.levels import SiteLevels
        from pruning.solver.ordering import HeldOut, check_finite, choose_ridge, references

        check_finite(site, W, split)
        W = W.to(split.fit.H.dtype)
        score = self.attention_score if site.kind is Kind.ATTENTION else self.ffn_score
        scores = [Score.obs, Score.wanda] if score is Score.auto else [score]
        judge = HeldOut(site, W, split)
        candidates = [self._order(score, site, W, split.fit.H, shapes) for score in scores]
        best = 0
        if len(scores) > 1:
            middle = self.ridges[len(self.ridges) // 2]
            losses = [judge(references(site, keeps), middle) for keeps in candidates]
            best = losses.index(min(losses))
        ridge = choose_ridge(judge, references(site, candidates[best]), self.ridges)
        losses = [judge([keep], ridge) for keep in candidates[best]]
        final = torch.stack(self._order(scores[best], site, W, split.all.H, shapes))
        return SiteLevels(list(shapes), final, losses, ridge, scores[best].value)

    def expert_scores(self, given: "ExpertSite") -> "Tensor":
        """Return REAP's score of every expert, or the loss without it."""
        from pruning.solver.experts import losses_without

        if self.experts is ExpertScore.loss:
            return losses_without(given)
        return super().expert_scores(given)

    def _order(
        self, score: Score, site: "Site", W: "Tensor", H: "Tensor", shapes: "Sequence[Shape]"
    ) -> "list[Tensor]":
        """Return what is kept at each shape: the units that a score removes last."""
        from pruning.solver.obs import Removal, Units, by_wanda, greedy
        from pruning.solver.ordering import kept_units

        def remove(W: "Tensor", H: "Tensor", units: Units) -> Removal:
            if score is Score.wanda:
                return by_wanda(W, H, units)
            return greedy(W, H, units, self.damp)

        return kept_units(site, W, H, shapes, remove, self.damp)
