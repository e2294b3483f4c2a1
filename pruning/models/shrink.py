"""Cut rows and columns for real (shrink_), or zero them where they are (mask_)."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.models.experts import cut_experts_, experts_of, mask_experts_
from pruning.models.modeling_pruned import (
    Architecture,
    LowRank,
    block_shape,
    find,
    keep_heads_,
    own_heads,
    replace_,
    resize_block_,
)
from pruning.models.shape import Experts, Heads, Shape, Width
from pruning.models.sites import (
    Allocation,
    Kind,
    Site,
    architecture,
    blocks,
    norm_behind,
    projection,
    set_weight_,
    shape,
    sites,
    weight,
)

M = TypeVar("M", bound=PreTrainedModel)
N = TypeVar("N", bound=nn.Module)


def copy_sharing_weights(model: N) -> N:
    """Copy the structure of a model or block but share every parameter and buffer with it."""
    shared = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(tensor): tensor for tensor in shared})


def repeat_blocks_(model: PreTrainedModel, count: int) -> None:
    """Let a model of one block have `count`, which share its weights and know their places."""
    layers = blocks(model)
    layers.extend(copy_block(layers[0], index) for index in range(1, count))


def copy_block(block: nn.Module, index: int) -> nn.Module:
    """Copy a block for another place, which the copy knows; it shares the weights."""
    copy = copy_sharing_weights(block)
    for module in copy.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = index  # type: ignore[assignment]
    return copy


def resize_(block: nn.Module, a: Architecture, shapes: Iterable[Shape]) -> None:
    """Give the sub-blocks of a block these shapes; one of no shape stays as it is.

    Projections that change are new modules with undefined values.
    """
    groups, per_group, width, experts = block_shape(block, a)
    for left in shapes:
        match left:
            case Heads():
                groups, per_group = left.groups, left.per_group
            case Width():
                width, experts = left.units, experts if left.units else 0
            case Experts():
                width, experts = left.width, left.experts
    resize_block_(block, a, groups, per_group, width, experts)


@torch.no_grad()
def resized(
    model: PreTrainedModel, heads: Heads, ffn: Width | Experts, index: int = 0
) -> nn.Module:
    """Return a copy of a block of other sizes, with random weights."""
    block = deepcopy(blocks(model)[index])
    resize_(block, architecture(model), (heads, ffn))
    return randomised_(block)


def randomised_(module: nn.Module) -> nn.Module:
    """Give a module random weights; return it."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    return module


@torch.no_grad()
def mask_(model: M, allocation: Allocation) -> M:
    """Zero the columns that the allocation drops, and the bias of a sub-block that is gone.

    Experts that are dropped are never chosen. A norm behind a sub-block that is gone goes too. The
    logical twin of `shrink_`: same logits, and same shapes. Writes into the model's parameters.
    """
    _check(model, allocation)
    for site, keep in allocation.items():
        if site.kind is Kind.EXPERTS:
            mask_experts_(blocks(model)[site.block], architecture(model), keep, site.groups)
            continue
        module = projection(model, site)
        W = weight(module)
        columns = keep.to(W.device).repeat_interleave(site.width)
        W[:, ~columns] = 0
        if keep.any():
            continue
        if isinstance(module.bias, Tensor):
            module.bias.zero_()
        if norm := norm_behind(model, site):
            replace_(blocks(model)[site.block], norm, nn.Identity())
    return model


@torch.no_grad()
def shrink_(model: M, allocation: Allocation) -> M:
    """Cut the units that the allocation drops out of the model.

    Projections that change are new modules; no existing parameter is written, since a dense model
    may share it. Sites that keep every unit, or that are not named, are left as they are.
    """
    _check(model, allocation)
    a = architecture(model)
    for index, block in enumerate(blocks(model)):
        mine = {s.kind: (s, k) for s, k in allocation.items() if s.block == index and not k.all()}
        if not mine:
            continue
        before, stacked, heads = _projections(block, a), experts_of(block, a), None
        if a.position_bias and Kind.ATTENTION in mine:
            heads = own_heads(block, a)
        resize_(block, a, [shape(site, keep) for site, keep in mine.values()])
        after = _projections(block, a)
        for kind, (site, keep) in mine.items():
            if not keep.any():
                continue
            if heads is not None and kind is Kind.ATTENTION:
                keep_heads_(block, a, heads[keep.to(heads.device)])
            if kind is Kind.EXPERTS:
                cut_experts_(block, a, keep.view(site.groups, -1), stacked)
                continue
            inputs, output = after[kind]
            old_inputs, old_output = before[kind]
            rows, columns = _kept(site, keep, a, [len(weight(old)) for old in old_inputs])
            for new, old, kept in zip(inputs, old_inputs, rows, strict=True):
                kept = kept.to(weight(old).device)
                set_weight_(new, weight(old)[kept])
                if isinstance(old.bias, Tensor):
                    new.bias.copy_(old.bias[kept])
            set_weight_(output, weight(old_output)[:, columns.to(weight(old_output).device)])
            if isinstance(old_output.bias, Tensor):
                output.bias.copy_(old_output.bias)
    return model


@torch.no_grad()
def factor_(
    model: PreTrainedModel,
    site: Site,
    A: Float[Tensor, "rank columns"],
    B: Float[Tensor, "rows rank"],
    bias: Tensor | None,
) -> None:
    """Put two projections B A in the place of one."""
    with torch.device("meta"):
        new = LowRank(A.shape[1], len(A), len(B), bias=bias is not None)
    new = new.to(A.dtype).to_empty(device=A.device)
    new.A.weight.copy_(A)
    new.B.weight.copy_(B)
    if bias is not None:
        new.B.bias.copy_(bias)
    replace_(blocks(model)[site.block], site.module, new)


def _check(model: PreTrainedModel, allocation: Allocation) -> None:
    there = set(sites(model))
    for site, keep in allocation.items():
        assert site in there, f"{site} is no site of this model"
        assert keep.shape == (site.units,), f"{site.name}: {tuple(keep.shape)} for {site.units}"
        left = shape(site, keep)
        if left.units and not site.allows(left):
            why = (
                "a norm reads all heads at once: keep all, or none"
                if site.kind is Kind.ATTENTION
                else f"every token is routed to {site.least}: keep as many at least, or none"
            )
            raise ValueError(f"{site.name}: {left} cannot be left of {site.whole}, since {why}")
        if not site.removable and not keep.any():
            raise ValueError(
                f"{site.name}: the first attention of a decoder cannot be removed whole, since "
                "caches read the sequence length there; keep at least one KV group"
            )


def _projections(block: nn.Module, a: Architecture) -> dict[Kind, tuple[list[Any], Any]]:
    """Return the input projections and the output projection of each sub-block still there."""
    parts = {
        Kind.ATTENTION: (a.attention_inputs, a.attention_output),
        Kind.FFN: (a.ffn_inputs, a.ffn_output),
    }
    return {
        kind: ([find(block, path) for path in inputs], find(block, output))
        for kind, (inputs, output) in parts.items()
        if find(block, output) is not None
    }


def _kept(
    site: Site, keep: Bool[Tensor, " units"], a: Architecture, rows: list[int]
) -> tuple[list[Int[Tensor, " _"]], Int[Tensor, " columns"]]:
    """Return the rows to keep of each input projection, of so many, and the output's columns."""
    columns = keep.repeat_interleave(site.width).nonzero().flatten()
    if site.kind is Kind.FFN:  # gate and up may be one projection
        firsts = (range(0, count, site.units) for count in rows)
        return [torch.cat([first + columns for first in mine]) for mine in firsts], columns
    groups = keep.reshape(site.groups, -1).any(1)
    kv = groups.repeat_interleave(site.width).nonzero().flatten()
    if len(rows) > 1:
        return [columns, kv, kv], columns
    if a.by_head:
        return [keep.repeat_interleave(3 * site.width).nonzero().flatten()], columns
    queries, keys = site.columns, site.groups * site.width
    return [torch.cat([columns, queries + kv, queries + keys + kv])], columns
