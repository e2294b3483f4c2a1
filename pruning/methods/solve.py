"""From a weight and its moments to levels: order, ridge, held-out losses."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pruning.calibration.moments import Moment
from pruning.latency.table import Shape
from pruning.methods.levels import SiteLevels
from pruning.methods.obs import Removal, damped, diagonal, error, greedy, least_squares
from pruning.methods.ziplm import Score, ZipLM
from pruning.models.sites import Kind, Site

REFERENCES = (0.8, 0.5)  # shares of the units kept at which scores and ridges are compared

Keep = Bool[Tensor, " units"]


def site_levels(
    method: ZipLM, site: Site, W: Tensor, moment: Moment, shapes: Sequence[Shape]
) -> SiteLevels:
    """Return the levels of a site, with the score and ridge of the least held-out error."""
    scores = [Score.obs, Score.wanda] if method.score is Score.auto else [method.score]
    found = []
    for score in scores:
        keeps = _keeps(site, W, moment.fit, shapes, score, method.damp)
        ridge, loss = _ridge(W, moment, _references(site, keeps), method.ridges)
        found.append((loss, ridge, score, keeps))
    _, ridge, score, keeps = min(found, key=lambda candidate: candidate[0])
    losses = [_held_out(W, moment, keep.repeat_interleave(site.width), ridge) for keep in keeps]
    return SiteLevels(list(shapes), torch.stack(keeps), losses, ridge, score.value)


def _keeps(
    site: Site,
    W: Float[Tensor, "rows columns"],
    H: Float[Tensor, "columns columns"],
    shapes: Sequence[Shape],
    score: Score,
    damp: float,
) -> list[Keep]:
    """Return what each shape keeps, in the order of one score."""

    def remove(W: Tensor, H: Tensor, width: int, steps: int, partition: Tensor | None) -> Removal:
        if score is Score.wanda:
            return diagonal(W, H, width, steps, partition)
        return greedy(W, damped(H, damp), width, steps, partition)

    if site.kind is Kind.FFN:
        narrowest = min(w for w in shapes if isinstance(w, int) and w > 0)
        order = remove(W, H, site.width, site.units - narrowest, None).order
        return [_without(site.units, order[: site.units - _width(shape)]) for shape in shapes]
    lattice = _lattice(site, W, H, damp, remove)
    return [lattice[_pair(shape)] for shape in shapes]


def _lattice(
    site: Site, W: Tensor, H: Tensor, damp: float, remove: Callable[..., Removal]
) -> dict[tuple[int, int], Keep]:
    """Return the kept query heads of every (KV groups, heads per group).

    Whole KV groups leave first; from each number of groups on, heads leave evenly from all of them,
    scored with the weights and moments that the least-squares update has left.
    """
    per_group = site.units // site.groups
    groups = remove(W, H, per_group * site.width, site.groups, None).order
    found = {(0, 0): torch.zeros(site.units, dtype=torch.bool)}
    for left in range(site.groups, 0, -1):
        keep = _without(site.groups, groups[: site.groups - left]).repeat_interleave(per_group)
        found[left, per_group] = keep
        if per_group == 1:
            continue
        columns = keep.repeat_interleave(site.width).to(W.device)
        W_K, H_K = least_squares(W, H, columns, damp), H[columns][:, columns]
        partition = torch.arange(left).repeat_interleave(per_group)
        order = remove(W_K, H_K, site.width, left * (per_group - 1), partition).order.cpu()
        units = keep.nonzero().flatten()
        for heads in range(per_group - 1, 0, -1):
            fewer = keep.clone()
            fewer[units[order[: left * (per_group - heads)]]] = False
            found[left, heads] = fewer
    return found


def _references(site: Site, keeps: list[Keep]) -> list[Bool[Tensor, " columns"]]:
    """Return the levels nearest the reference shares, as columns."""
    shares = torch.tensor([float(keep.sum()) / site.units for keep in keeps])
    partial = torch.where((shares > 0) & (shares < 1), shares, torch.inf)
    if not torch.isfinite(partial).any():
        return []
    nearest = {int((partial - share).abs().argmin()) for share in REFERENCES}
    return [keeps[index].repeat_interleave(site.width) for index in sorted(nearest)]


def _ridge(
    W: Tensor, moment: Moment, references: list[Bool[Tensor, " columns"]], ridges: list[float]
) -> tuple[float, float]:
    """Return the ridge with the least held-out error, summed over the references, and that error.

    Held-out error is close to convex in log ridge, so the candidates are walked downhill.
    """

    def loss(index: int) -> float:
        return sum(_held_out(W, moment, keep, ridges[index]) for keep in references)

    index = len(ridges) // 2
    best = loss(index)
    for step in (1, -1):
        while 0 <= index + step < len(ridges) and (found := loss(index + step)) < best:
            index, best = index + step, found
    return ridges[index], best


def _held_out(
    W: Float[Tensor, "rows columns"], moment: Moment, keep: Bool[Tensor, " columns"], ridge: float
) -> float:
    """Return the error on the held-out tokens of weights solved from the others."""
    keep = keep.to(W.device)
    if keep.all():
        return 0.0
    return error(W, moment.held, keep, least_squares(W, moment.fit, keep, ridge))


def _without(units: int, removed: Int[Tensor, " removed"]) -> Keep:
    keep = torch.ones(units, dtype=torch.bool)
    keep[removed.cpu()] = False
    return keep


def _width(shape: Shape) -> int:
    assert isinstance(shape, int)
    return shape


def _pair(shape: Shape) -> tuple[int, int]:
    assert isinstance(shape, tuple)
    return shape
