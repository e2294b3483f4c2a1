"""What the output projections of a model read and give, row by row, as hooks see it."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.data.batch import Batch
from pruning.models.sites import Allocation, Site, projection, set_weight_, sites, weight


@dataclass
class Rows:
    """Of one site at all real tokens, float64."""

    X: Tensor  # what it reads
    Y: Tensor  # what it gives, without its bias
    held_out: Tensor  # which tokens are


def masked(model: PreTrainedModel, pruned: PreTrainedModel, kept: Allocation) -> PreTrainedModel:
    """Return a copy that computes what the pruned one does, with zeros where columns are gone."""
    copy = deepcopy(model)
    left = {(site.block, site.kind): site for site in sites(pruned)}
    for site, keep in kept.items():
        W = torch.zeros_like(weight(projection(model, site)))
        if keep.any():
            columns = keep.repeat_interleave(site.width)
            W[:, columns] = weight(projection(pruned, left[site.block, site.kind]))
        set_weight_(projection(copy, site), W)
    return copy


@torch.no_grad()
def observed(model: PreTrainedModel, batches: list[Batch]) -> dict[Site, Rows]:
    """Run batches through a model; return what is read and given at its sites."""
    seen: dict[Site, list[list[Tensor]]] = {site: [[], []] for site in sites(model)}

    def note(site: Site):
        def hook(module, args, out: Tensor) -> None:
            bias = getattr(module, "bias", None)  # experts have none
            gave = out if bias is None else out - bias
            for rows, one in zip(seen[site], (args[0], gave), strict=True):
                rows.append(one.reshape(-1, one.shape[-1]))  # opt's FFN reads [tokens, hidden]

        return hook

    handles = [projection(model, site).register_forward_hook(note(site)) for site in seen]
    for batch in batches:
        model(input_ids=batch.ids, attention_mask=batch.mask)
    for handle in handles:
        handle.remove()
    real = torch.cat([batch.mask.bool().flatten() for batch in batches])
    out = torch.cat([torch.full(b.mask.shape, b.held_out).flatten() for b in batches])[real]
    return {
        site: Rows(*(torch.cat(rows)[real].double() for rows in both), out)
        for site, both in seen.items()
    }
