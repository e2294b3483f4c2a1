"""Whole models that a latency table has to explain: without attention, without FFNs, without both.

A part that is timed alone meets other caches, and other queues of a device, than within a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from pruning.latency.grid import Levels, widths
from pruning.latency.table import Shapes
from pruning.models.modeling_pruned import factorise_
from pruning.models.shape import Width
from pruning.models.shrink import copy_sharing_weights, randomised_, resize_
from pruning.models.sites import Kind, Site, architecture, blocks, linears, sites

SHARE = 4  # the rank of projections in a reference model is a full one over this


@dataclass
class ReferenceModel:
    """A whole model to time, and what is left of its sites."""

    name: str
    model: PreTrainedModel
    shapes: Shapes


def reference_models(
    model: PreTrainedModel, prunable: Sequence[Site], alignment: int
) -> list[ReferenceModel]:
    """Return the dense model first, then what differs from it; none has weights of its own.

    Attention that caches look at is left in its place. Two that are alike are one.
    """
    if prunable and prunable[0].kind is Kind.LINEAR:
        mine = [s for s in linears(model) if any(s.module == first.module for first in prunable)]
        whole: Shapes = {site: site.whole for site in mine}
        low: Shapes = {site: rank_of(site, alignment) for site in mine}
        return [
            ReferenceModel("dense", model, whole),
            ReferenceModel("low rank", _factorised(model, low), low),
        ]
    models: list[ReferenceModel] = []
    for name, gone in (
        ("dense", ()),
        ("no attention", (Kind.ATTENTION,)),
        ("no FFN", (Kind.FFN, Kind.EXPERTS)),
        ("neither", (Kind.ATTENTION, Kind.FFN, Kind.EXPERTS)),
    ):
        left = {s: s.gone if s.kind in gone and s.removable else s.whole for s in sites(model)}
        if all(left != other.shapes for other in models):
            models.append(ReferenceModel(name, _without(model, left), left))
    return models


def rank_of(site: Site, alignment: int) -> Width:
    """Return the rank of a projection in the model of low ranks: one that is timed."""
    offered = widths(site.units, alignment)[:-1]
    return min(offered, key=lambda rank: abs(rank.units - site.units / SHARE))


def _without(model: PreTrainedModel, left: Shapes) -> PreTrainedModel:
    shrunk = copy_sharing_weights(model)
    for index, block in enumerate(blocks(shrunk)):
        mine = [shape for site, shape in left.items() if site.block == index]
        resize_(block, architecture(model), mine)
    return shrunk


def _factorised(model: PreTrainedModel, ranks: Shapes) -> PreTrainedModel:
    shrunk = copy_sharing_weights(model)
    for site, rank in ranks.items():
        if rank != site.whole:  # there is a lower one
            randomised_(factorise_(blocks(shrunk)[site.block], site.module, rank.units))
    return shrunk


def scales(
    parts: Mapping[str, Levels], whole: Sequence[ReferenceModel], ms: Mapping[str, float]
) -> dict[str, float]:
    """Return by how much longer each part takes within a model than alone.

    Least squares over all reference models, in the milliseconds that each saves on the dense one.
    Parts that none of them tells apart, such as the projections of a block, have one factor. Where
    one saves nothing measurable, parts are taken as they are.
    """
    dense = whole[0]
    together = [
        p for p in parts if any(s.kind is Kind.LINEAR and s.part == p for s in dense.shapes)
    ]
    groups = [together] if together else [[part] for part in parts]
    rows, saved = [], []
    for reference in whole[1:]:
        row = [0.0] * len(groups)
        for site, left in reference.shapes.items():
            group = next(i for i, names in enumerate(groups) if site.part in names)
            row[group] += parts[site.part][dense.shapes[site]] - parts[site.part][left]
        rows.append(row)
        saved.append(ms[dense.name] - ms[reference.name])
    if not rows:
        return dict.fromkeys(parts, 1.0)
    solution = np.linalg.lstsq(np.array(rows), np.array(saved), rcond=None)[0]
    factors = {part: float(solution[i]) for i, names in enumerate(groups) for part in names}
    return {part: scale if scale > 0 else 1.0 for part, scale in factors.items()}
