"""Gaps in the residual stream: sub-blocks that are gone, and what still writes in front of them."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pruning.models.modeling_pruned import block_shape
from pruning.models.sites import Allocation, Kind, Site, architecture, blocks, sites


@dataclass
class Gap:
    """Sub-blocks that are gone, one behind the other, and the last one before them that stays."""

    writer: Site
    gone: list[Site]


def outputs_add_up(model: PreTrainedModel) -> bool:
    """Tell whether outputs of sub-blocks add up in the stream, with no norm of their own."""
    a = architecture(model)
    return not (a.encoder or a.attention_output_norm or a.ffn_output_norm)


def gaps(model: PreTrainedModel, allocation: Allocation) -> list[Gap]:
    """List what is gone behind each site that stays, in the order of the stream."""
    a, every, gap = architecture(model), list[Gap](), None
    at = {(site.block, site.kind): site for site in allocation}
    for index, block in enumerate(blocks(model)):
        groups, _, width, experts = block_shape(block, a)
        sizes = {Kind.ATTENTION: groups, Kind.EXPERTS if experts else Kind.FFN: width}
        here = [at.get((index, kind)) for kind, size in sizes.items() if size]
        if getattr(block, "use_parallel_residual", False):  # what stays of it comes first
            here.sort(key=lambda site: site is not None and not allocation[site].any())
        for site in here:
            if site is None:  # a product of two: it reads the stream, and stays as it is
                gap = None
            elif allocation[site].any() and site.kind is Kind.EXPERTS:
                gap = None  # many projections write at once, each what its own tokens ask for
            elif allocation[site].any():
                gap = Gap(site, [])
                every.append(gap)
            elif gap:
                gap.gone.append(site)
    return [gap for gap in every if gap.gone]


def writers(model: PreTrainedModel) -> dict[Site, Site]:
    """Return what writes in front of each site, where it would take over the site alone."""
    if not outputs_add_up(model):
        return {}
    whole = {site: torch.ones(site.units, dtype=torch.bool) for site in sites(model)}
    alone = (gaps(model, whole | {site: ~keep}) for site, keep in whole.items() if site.removable)
    return {gap.gone[0]: gap.writer for each in alone for gap in each}
