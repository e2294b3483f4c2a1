"""What is kept of every site: the first units, as a file, and cut twice."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from pruning.models.shape import Experts, Heads, Shape, Width
from pruning.models.sites import Allocation, Site
from pruning.system.files import write_text


def first_units(site: Site, left: Shape) -> Bool[Tensor, " units"]:
    """Keep the first units: channels, or heads of the first KV groups, or of the first experts."""
    keep = torch.zeros(site.groups, site.heads_per_group, dtype=torch.bool)
    match left:
        case Heads(groups, per_group) | Experts(groups, per_group):
            keep[:groups, :per_group] = True
        case Width(units):
            keep[:, :units] = True
    return keep.flatten()


def write_allocation(allocation: Allocation, path: Path) -> None:
    """Write the kept units of every site, `{"block.0.ffn": {"of": 1536, "keep": [0, 3, ...]}}`."""
    sites = {
        site.name: {"of": site.units, "keep": keep.nonzero().flatten().tolist()}
        for site, keep in allocation.items()
    }
    write_text(json.dumps(sites) + "\n", path)


def read_allocation(path: Path, sites: Sequence[Site]) -> Allocation:
    """Read what `write_allocation` wrote; sites that it does not name are whole."""
    kept: dict[str, Any] = json.loads(path.read_text())
    allocation = {}
    for site in sites:
        units = kept.get(site.name, {"keep": range(site.units)})["keep"]
        allocation[site] = torch.zeros(site.units, dtype=torch.bool)
        allocation[site][torch.tensor(list(units), dtype=torch.long)] = True
    return allocation


def composed(former: Allocation, latter: Allocation) -> Allocation:
    """Return what is kept of the sites of `former` by cutting twice.

    `latter` is of the model that `former` made: its units are those that were kept. A site that is
    not in it was gone already, or is cut no further.
    """
    again = {(site.block, site.part): keep for site, keep in latter.items()}
    allocation = {}
    for site, keep in former.items():
        allocation[site] = keep.clone()
        if (later := again.get((site.block, site.part))) is not None:
            allocation[site][keep] = later.to(keep.device)
    return allocation
