"""What methods do once shapes are chosen: from levels, or block by block along a schedule."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from pruning.calibration.calibration import Target
from pruning.calibration.moments import Split
from pruning.latency.table import Shape, Shapes
from pruning.methods.method import Plan, Subject
from pruning.methods.sequential import sequential
from pruning.methods.slimgpt import ChannelScore, HeadScore, SlimGPT
from pruning.models.shrink import shrink_, twin
from pruning.models.sites import Allocation, Site, sites
from pruning.search.options import Chooser
from pruning.search.schedule import chooser, every_shape, shapes
from pruning.search.search import Schedule
from pruning.solver.levels import Levels
from pruning.solver.obs import Removal, batched, by_wanda, greedy
from pruning.solver.ordering import kept_units

Keep = Bool[Tensor, " units"]


class LevelsPlan(Plan):
    """Levels, and a search that has prepared to choose among them."""

    def __init__(
        self,
        subject: Subject,
        levels: Levels,
        choose: Chooser,
        ridges: Sequence[float],
        searched: Sequence[dict[str, float]] = (),
    ):
        self.subject, self.levels, self._choose = subject, levels, choose
        self.searched = searched
        self.ridges = ridges  # candidates for an update behind pruned blocks
        self._behind = subject.calibration.target is Target.dense and min(ridges) < math.inf
        self.costly = levels.costly or self._behind

    def choose(self, budget: float) -> Shapes | None:
        """Return the shapes of the levels that the search chooses."""
        choice = self._choose(budget)
        if choice is None:
            return None
        pairs = zip(self.levels.items(), choice, strict=True)
        return {site: of.shapes[level] for (site, of), level in pairs}

    def draft(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Return a model to time."""
        return self.levels.draft(self.subject.dense, self._chosen(shapes))

    def build(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Cut the levels; for dense targets, solve their weights behind pruned blocks."""
        choice = self._chosen(shapes)
        if not self._behind:
            return self.levels.cut(self.subject.dense, choice)
        keeps = self.levels.allocation(choice)
        return sequential(self.subject, self.ridges, lambda site, W, split: keeps[site])

    def _chosen(self, shapes: Shapes) -> list[int]:
        return [of.shapes.index(shapes[site]) for site, of in self.levels.items()]


class SchedulePlan(Plan):
    """SlimGPT at any scale of its schedule."""

    costly = True

    def __init__(
        self,
        method: SlimGPT,
        subject: Subject,
        choose: Callable[[float], Shapes | None],
        given: Shapes | None,
    ):
        self.method, self.subject = method, subject
        self._choose, self.given = choose, given

    @classmethod
    def of(cls, method: SlimGPT, subject: Subject) -> "SchedulePlan":
        """Prepare the schedule."""
        search, table = subject.search, subject.table
        assert isinstance(search, Schedule)
        of = sites(subject.dense)
        given = None
        if method.ratio is not None:
            given = shapes(search.form(), {site: every_shape(site) for site in of}, method.ratio)
        choose = chooser(search.form(), {site: table.levels(site) for site in of}, table.total)
        return cls(method, subject, choose, given)

    def choose(self, budget: float) -> Shapes | None:
        """Return the shapes of the least ratios that fit a budget."""
        return self._choose(budget)

    @torch.no_grad()
    def draft(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Cut the last units of every site: as fast as the model to come, and as large."""
        allocation = {site: _first(site, shape) for site, shape in shapes.items()}
        return shrink_(twin(self.subject.dense), allocation), allocation

    def build(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Prune block after block, each on what the pruned ones before it give."""

        def decide(site: Site, W: Float[Tensor, "rows columns"], split: Split) -> Keep:
            H, damp = split.all.H, self.method.damp
            return kept_units(site, W, H, [shapes[site]], self._remove, damp)[0]

        return sequential(self.subject, self.method.ridges, decide)

    def _remove(
        self, W: Tensor, H: Tensor, width: int, steps: int, partition: Tensor | None
    ) -> Removal:
        if width == 1 and self.method.ffn_score is ChannelScore.wanda:
            return by_wanda(W, H, width, steps, partition)
        damp = self.method.damp
        if width == 1:
            return batched(W, H, self.method.group_sizes(steps), damp)
        grouped = self.method.score is HeadScore.grouped_cholesky
        return greedy(W, H, width, steps, partition, damp, grouped_cholesky=grouped)


def _first(site: Site, shape: Shape) -> Keep:
    """Keep the first units: channels, or heads of the first KV groups."""
    keep = torch.zeros(site.groups, site.heads_per_group, dtype=torch.bool)
    if isinstance(shape, tuple):
        keep[: shape[0], : shape[1]] = True
    else:
        keep[:, :shape] = True
    return keep.flatten()
