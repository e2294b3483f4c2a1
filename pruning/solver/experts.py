"""The levels of experts: which leave, and which channels of each that stays.

Every expert is an FFN with moments of its own, so that a method's rule for FFNs says which of its
channels leave. An order of the experts says who leaves whole. What a level loses is measured: the
pruned experts, with a router that chooses among them, read a sample of held-out tokens.
"""

# Tensor.tolist has no types
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.calibration.moment import Split
from pruning.calibration.moments import Moments
from pruning.calibration.routed import Routed, Sample
from pruning.models.experts import KeptExperts, Stacked, cut_experts_, experts_of
from pruning.models.modeling_pruned import block_shape, find, replace_, resize_block_
from pruning.models.shape import Experts, Shape, Width
from pruning.models.shrink import copy_sharing_weights
from pruning.models.sites import Site, architecture, blocks
from pruning.solver.obs import least_squares

Keep = Bool[Tensor, "experts width"]


@dataclass
class ExpertSite:
    """The experts of a block of a dense model, and what they read."""

    model: PreTrainedModel
    site: Site
    moments: Moments

    @property
    def block(self) -> nn.Module:
        """Return the block."""
        return blocks(self.model)[self.site.block]

    @property
    def stacked(self) -> Stacked:
        """Return the weights of all experts."""
        stacked = experts_of(self.block, architecture(self.model))
        assert stacked is not None
        return stacked

    @property
    def routed(self) -> Routed:
        """Read what the router gives."""
        return self.moments.routed(self.site, self.stacked.down.device)

    def weight(self, index: int) -> Float[Tensor, "rows columns"]:
        """Return the projection of an expert back to the stream."""
        return self.stacked.down[index].detach()

    def split(self, index: int) -> Split:
        """Read the moments of an expert."""
        return self.moments.split(self.site.each[index], self.stacked.down.device)

    @torch.no_grad()
    def cut(self, keep: Keep, ridges: Sequence[float], fit: bool) -> nn.Module:
        """Return what is left of the block's router and experts; the model stays as it is.

        Weights are solved from all tokens, or only from those to `fit`.
        """
        a, block = architecture(self.model), copy_sharing_weights(self.block)
        if not keep.all():
            groups, heads, _, _ = block_shape(block, a)
            kept = keep[keep.any(1)]
            resize_block_(block, a, groups, heads, int(kept[0].sum()), len(kept))
            cut_experts_(block, a, keep, self.stacked)
            self.solve_(find(block, a.experts), keep, ridges, fit)
        return find(block, a.experts.rpartition(".")[0])

    @torch.no_grad()
    def solve_(self, experts: Any, keep: Keep, ridges: Sequence[float], fit: bool) -> None:
        """Solve the projections of the experts that are left, each from its own tokens."""
        kept = cast("list[int]", keep.any(1).nonzero().flatten().tolist())
        for place, index in enumerate(kept):
            if keep[index].all():
                continue
            W, one = self.weight(index), self.site.each[index]
            moment = (self.moments.fit if fit else self.moments.all)(one, W.device)
            columns = keep[index].to(W.device)
            W_K = least_squares(W.double(), moment.H.double(), columns, ridges[index])
            experts.down_proj[place].copy_(W_K)


@runtime_checkable
class Rule(Protocol):
    """What a method decides: the levels of one expert, and what every expert is worth."""

    def site_levels(self, site: Site, W: Tensor, split: Split, shapes: Sequence[Shape]) -> Any:
        """Return the levels of one expert at the given widths."""
        ...

    def expert_scores(self, given: ExpertSite) -> Float[Tensor, " experts"]:
        """Return what every expert is worth; the least goes first."""
        ...


@dataclass
class ExpertLevels:
    """What is kept at every level, what it loses, and the ridge of each expert."""

    keeps: Bool[Tensor, "levels units"]
    loss: list[float]
    ridges: list[float]
    score: str


def expert_levels(given: ExpertSite, rule: Rule, shapes: Sequence[Shape]) -> ExpertLevels:
    """Return the levels of the experts of a block; losses are relative errors on held-out tokens.

    The order of the experts, and that of the channels of each, are the same at every level.
    """
    left = [shape for shape in shapes if isinstance(shape, Experts) and shape.units]
    widths = sorted({shape.width for shape in left}, reverse=True)
    at = [Width(width) for width in widths]
    of_each = [
        rule.site_levels(one, given.weight(index), given.split(index), at)
        for index, one in enumerate(given.site.each)
    ]
    ridges = [levels.ridge for levels in of_each]
    leaving = rule.expert_scores(given).cpu().argsort(stable=True)
    sample, device = given.routed.held, given.stacked.down.device
    dense = run(find(given.block, _path(given)), sample)
    kept: dict[Shape, Tensor] = {given.site.gone: torch.zeros(given.site.units, dtype=torch.bool)}
    loss: dict[Shape, float] = {given.site.gone: 1.0}
    for place, width in enumerate(widths):
        channels = torch.stack([levels.keeps[place] for levels in of_each])
        narrowed = given.cut(channels, ridges, fit=True)
        router = narrowed.get_submodule(_router(given))
        for shape in (shape for shape in left if shape.width == width):
            some = torch.ones(len(of_each), dtype=torch.bool)
            some[leaving[: len(some) - shape.experts]] = False
            kept[shape] = (channels & some[:, None]).flatten()
            replace_(narrowed, _router(given), KeptExperts(router, some.to(device)))
            loss[shape] = relative_error(run(narrowed, sample), dense, sample)
    loss[given.site.whole] = 0.0
    keeps = torch.stack([kept[shape] for shape in shapes])
    return ExpertLevels(keeps, [loss[shape] for shape in shapes], ridges, of_each[0].score)


def losses_without(given: ExpertSite) -> Float[Tensor, " experts"]:
    """Return the relative error of what the block gives, once without each expert.

    Of tokens that are not held out. REAP's score where none can leave.
    """
    count, routed = given.site.groups, given.routed
    if count <= given.site.least:
        return routed.reap
    sample, device = routed.fit, given.stacked.down.device
    dense = find(given.block, _path(given))
    y, router = run(dense, sample), dense.get_submodule(_router(given))
    without, errors = copy_sharing_weights(dense), list[float]()
    for index in range(count):
        others = torch.arange(count, device=device) != index
        replace_(without, _router(given), KeptExperts(router, others))
        errors.append(relative_error(run(without, sample), y, sample))
    return torch.tensor(errors)


@torch.no_grad()
def run(sub_block: Any, sample: Sample) -> Float[Tensor, "tokens hidden"]:
    """Return what router and experts make of a sample."""
    return sub_block(sample.inputs[None])[0] if len(sample.inputs) else sample.inputs


def relative_error(
    y: Float[Tensor, "tokens hidden"],
    dense: Float[Tensor, "tokens hidden"],
    sample: Sample,
) -> float:
    """Return sum w |y - dense|^2 over sum w |dense|^2."""
    w, whole = sample.weights.double(), dense.double()
    error = float(w @ (y.double() - whole).square().sum(-1))
    return error / max(float(w @ whole.square().sum(-1)), 1e-300)


def _path(given: ExpertSite) -> str:
    return architecture(given.model).experts.rpartition(".")[0]


def _router(given: ExpertSite) -> str:
    return architecture(given.model).router.rpartition(".")[2]
