"""Pruning block by block: the pruned blocks give the inputs that the next one is pruned on."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from pruning.calibration.moments import Split, block_moments
from pruning.calibration.stream import enter
from pruning.latency.table import Shape, Shapes
from pruning.methods.method import Plan, Subject
from pruning.methods.obs import Removal, batched, damped, greedy, least_squares
from pruning.methods.slimgpt import HeadScore, SlimGPT
from pruning.methods.solve import HeldOut, choose_ridge, kept_units
from pruning.models.shrink import shrink_, twin
from pruning.models.sites import (
    Allocation,
    Site,
    blocks,
    output_projection,
    set_weight_,
    sites,
    weight,
)
from pruning.results.progress import track
from pruning.search.schedule import chooser, every_shape, shapes
from pruning.search.search import Schedule


class Sequential(Plan):
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
    def of(cls, method: SlimGPT, subject: Subject) -> "Sequential":
        """Prepare the schedule."""
        search, table = subject.search, subject.table
        assert isinstance(search, Schedule)
        of = sites(subject.dense)
        given = None
        if method.ratio is not None:
            given = shapes(search, {site: every_shape(site) for site in of}, method.ratio)
        choose = chooser(search, {site: table.levels(site) for site in of}, table.total)
        return cls(method, subject, choose, given)

    def choose(self, budget: float) -> Shapes | None:
        """Return the shapes of the least ratios that fit a budget."""
        return self._choose(budget)

    @torch.no_grad()
    def draft(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Cut the last units of every site: as fast as the model to come, and as large."""
        allocation = {site: _first(site, shape) for site, shape in shapes.items()}
        return shrink_(twin(self.subject.dense), allocation), allocation

    @torch.no_grad()
    def build(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Prune block after block: attention, then the FFN behind it, then on to the next block.

        Three passes of the calibration text through every block, one block's moments in memory.
        """
        dense, text = self.subject.dense, self.subject.calibration
        pruned, allocation = twin(dense), Allocation()
        states = [enter(pruned, batch) for batch in self.subject.batches]
        for index in track(range(len(blocks(pruned))), "prune: blocks"):
            for site in (site for site in shapes if site.block == index):
                found = block_moments(pruned, index, states, [site], text.weight, advance=False)
                W = weight(output_projection(dense, site)).to(found[site].fit.H.dtype)
                keep, W_K = self._solve(site, W, found[site], shapes[site])
                allocation[site] = keep
                shrink_(pruned, {site: keep})
                if not keep.all():
                    set_weight_(output_projection(pruned, site), W_K)
            for state in states:
                state.advance(index, blocks(pruned)[index])
        return pruned, allocation

    def _solve(
        self, site: Site, W: Tensor, split: Split, shape: Shape
    ) -> tuple[Bool[Tensor, " units"], Float[Tensor, "rows kept"]]:
        """Return what a site keeps at a shape, and the weights that make up for the rest."""
        method = self.method
        (keep,) = kept_units(site, W, split.all.H, [shape], self._remove, method.damp)
        ridge = choose_ridge(HeldOut(site, W, split), [keep], method.ridges)
        columns = keep.repeat_interleave(site.width).to(W.device)
        W_K = least_squares(W.double(), split.all.H.double(), columns, ridge)
        return keep, W_K.to(W.dtype)

    def _remove(
        self, W: Tensor, H: Tensor, width: int, steps: int, partition: Tensor | None
    ) -> Removal:
        H = damped(H.double(), self.method.damp)
        if width == 1:
            return batched(W, H, self.method.group_sizes(steps))
        grouped = self.method.score is HeadScore.grouped_cholesky
        return greedy(W, H, width, steps, partition, grouped_cholesky=grouped)


def _first(site: Site, shape: Shape) -> Bool[Tensor, " units"]:
    """Keep the first units: channels, or heads of the first KV groups."""
    keep = torch.zeros(site.groups, site.heads_per_group, dtype=torch.bool)
    if isinstance(shape, tuple):
        keep[: shape[0], : shape[1]] = True
    else:
        keep[:, :shape] = True
    return keep.flatten()
