"""Name the places of a model where structure can be removed."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pruning.models.modeling_pruned import (
    ARCHITECTURES,
    Architecture,
    add_output_biases_,
    block_shape,
)


class Kind(StrEnum):
    """The two sub-blocks of a transformer block."""

    ATTENTION = "attention"
    FFN = "ffn"


@dataclass(frozen=True)
class Site:
    """One place where structure can be removed: columns of an output projection, in units.

    Query heads of one KV group are neighbours: unit `g * heads_per_group + h` is head h of group g.
    """

    block: int
    kind: Kind
    units: int  # query heads, or FFN channels
    width: int  # columns of the output projection per unit: head_dim, or 1
    groups: int = 1  # KV groups over which the query heads are spread evenly
    removable: bool = True  # False for the first attention of each layer type: caches look there

    @property
    def columns(self) -> int:
        """Count the columns of the output projection."""
        return self.units * self.width

    @property
    def heads_per_group(self) -> int:
        """Count the query heads of each KV group."""
        return self.units // self.groups

    @property
    def name(self) -> str:
        """Return a readable key such as `block.3.ffn`."""
        return f"block.{self.block}.{self.kind}"


Allocation = dict[Site, Bool[Tensor, " units"]]  # True = keep


def architecture(model: PreTrainedModel) -> Architecture:
    """Look up where the model's family keeps its parts; ValueError for an unsupported one."""
    kind = model.config.model_type
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"model: architecture '{kind}' is not supported; use one of {', '.join(ARCHITECTURES)}"
            " or add a row to ARCHITECTURES in pruning/models/modeling_pruned.py"
        )
    if getattr(model.config, "do_layer_norm_before", True) is False:
        raise ValueError(
            "model: OPT with do_layer_norm_before=False (opt-350m) is not supported, since its "
            "norms come after the residual additions; use another size of OPT"
        )
    return ARCHITECTURES[kind]


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the transformer blocks."""
    layers = model.get_submodule(architecture(model).blocks)
    assert isinstance(layers, nn.ModuleList)
    return layers


def final(
    model: PreTrainedModel, hidden: Float[Tensor, "*batch hidden"]
) -> Float[Tensor, "*batch vocabulary"]:
    """Turn what leaves the last block into logits: final norm, projection if any, head."""
    a = architecture(model)
    for path in filter(None, (a.norm, a.project_out)):
        parent, _, name = path.rpartition(".")
        module = getattr(model.get_submodule(parent), name)  # None where this model has no such
        hidden = hidden if module is None else module(hidden)
    head = model.get_output_embeddings()
    assert head is not None
    return head(hidden)


def sites(model: PreTrainedModel) -> list[Site]:
    """List attention, then FFN of each block, read off the modules; none where it is gone."""
    a = architecture(model)
    types = getattr(model.config, "layer_types", None) or ["full"] * len(blocks(model))
    found = []
    for index, block in enumerate(blocks(model)):
        groups, heads, width = block_shape(block, a)
        if groups:
            head_dim = getattr(block, a.attention).head_dim
            removable = index != types.index(types[index])
            found.append(Site(index, Kind.ATTENTION, groups * heads, head_dim, groups, removable))
        if width:
            found.append(Site(index, Kind.FFN, width, 1))
    return found


def output_projection(model: PreTrainedModel, site: Site) -> nn.Module:
    """Return the projection back to the residual stream, whose input columns are the units."""
    a = architecture(model)
    block = blocks(model)[site.block]
    if site.kind is Kind.ATTENTION:
        return getattr(getattr(block, a.attention), a.attention_output)
    return getattr(getattr(block, a.ffn) if a.ffn else block, a.ffn_output)


def weight(module: nn.Module) -> Float[Tensor, "rows columns"]:
    """View a projection's weight as [outputs, inputs], also where it is stored transposed."""
    W = module.weight
    assert isinstance(W, Tensor)
    return W.detach().T if isinstance(module, Conv1D) else W.detach()


@torch.no_grad()
def set_weight_(module: nn.Module, W: Float[Tensor, "rows columns"]) -> None:
    """Copy an [outputs, inputs] matrix into a projection's own weight."""
    assert W.shape == weight(module).shape, f"{tuple(W.shape)} into {tuple(weight(module).shape)}"
    weight(module).copy_(W)


@torch.no_grad()
def add_bias_(model: PreTrainedModel, site: Site, shift: Float[Tensor, " rows"]) -> None:
    """Add to the bias of an output projection; a family without such biases gets them all."""
    module = output_projection(model, site)
    if module.bias is None:
        add_output_biases_(model, architecture(model))
        model.config.output_bias = True  # type: ignore[attr-defined]
    bias = module.bias
    assert isinstance(bias, nn.Parameter)
    module.bias = nn.Parameter(bias + shift.to(bias), bias.requires_grad)  # not a twin's


def shape(site: Site, keep: Bool[Tensor, " units"]) -> tuple[int, int] | int:
    """Return what is left of a site: (KV groups, query heads per group), or the FFN width.

    ValueError where the kept KV groups would keep different numbers of query heads: `repeat_kv`
    would then pair queries with the wrong keys without a word.
    """
    if site.kind is Kind.FFN:
        return int(keep.sum())
    counts = keep.reshape(site.groups, -1).sum(1)
    counts = counts[counts > 0].tolist()
    if not counts:
        return 0, 0
    if len(set(counts)) > 1:
        raise ValueError(
            f"{site.name}: kept KV groups keep {counts} query heads; keep the same number in each"
        )
    return len(counts), counts[0]
