"""Allocations that remove something of every kind."""

import torch
from transformers import PreTrainedModel

from pruning.models.sites import Allocation, Kind, Site, sites


def heads(site: Site, groups: list[int], kept: list[list[int]]) -> torch.Tensor:
    """Keep some query heads of some KV groups."""
    keep = torch.zeros(site.groups, site.heads_per_group, dtype=torch.bool)
    for group, of_group in zip(groups, kept, strict=True):
        keep[group, of_group] = True
    return keep.flatten()


def experts(site: Site, dropped: list[int], width: int) -> torch.Tensor:
    """Drop some experts; of each other one keep as many channels, other ones of every one."""
    generator = torch.Generator().manual_seed(1)
    keep = torch.zeros(site.groups, site.units // site.groups, dtype=torch.bool)
    for of_one in keep:
        of_one[torch.randperm(len(of_one), generator=generator)[:width]] = True
    keep[dropped] = False
    return keep.flatten()


def mixed(model: PreTrainedModel) -> Allocation:
    """Drop KV groups in block 0, all attention in block 1, heads and the FFN in block 2.

    Of experts, some and channels of the others; of heads that only leave together, none.
    """
    found = {(site.block, site.kind): site for site in sites(model)}
    a0, a1, a2 = (found[block, Kind.ATTENTION] for block in range(3))
    f0, f2 = (found.get((b, Kind.FFN)) or found[b, Kind.EXPERTS] for b in (0, 2))
    allocation = {site: torch.ones(site.units, dtype=torch.bool) for site in sites(model)}
    every = list(range(a0.heads_per_group))
    if not a0.least:
        allocation[a0] = heads(a0, [0, 2, 3], [every] * 3)
    allocation[a1] = torch.zeros(a1.units, dtype=torch.bool)
    if a2.heads_per_group > 1 and not a2.least:  # one head of three groups, not the same one
        allocation[a2] = heads(a2, [0, 1, 3], [[1], [0], [1]])
    if f0.kind is Kind.EXPERTS:
        allocation[f0] = experts(f0, [1, 4], 16)
    else:
        allocation[f0] = torch.rand(f0.units, generator=torch.Generator().manual_seed(1)) < 0.5
        allocation[f0][:2] = torch.tensor([True, allocation[f0][2:].sum() % 2 == 1])  # odd
        assert allocation[f0].sum() % 2 == 1
    allocation[f2] = torch.zeros(f2.units, dtype=torch.bool)
    return allocation


def uniform(model: PreTrainedModel, groups: int | None, width: int) -> Allocation:
    """Keep as many KV groups (None: all) and FFN channels in every block."""
    allocation = {}
    for site in sites(model):
        keep = torch.ones(site.units, dtype=torch.bool)
        if site.kind is Kind.FFN:
            keep[: site.units - width] = False
        elif site.kind is Kind.EXPERTS:
            keep = experts(site, [0], width)
        elif groups is not None:
            keep[: (site.groups - groups) * site.heads_per_group] = False
        allocation[site] = keep
    return allocation
