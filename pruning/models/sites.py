"""Name the places of a model where structure can be removed."""

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pruning.models.modeling_pruned import (
    ARCHITECTURES,
    Architecture,
    add_output_biases_,
    block_shape,
    find,
    head_size,
    ranks,
)
from pruning.models.shape import Experts, Heads, Shape, Width

HEADS = ("ForSequenceClassification", "ForQuestionAnswering")  # of encoders


class Kind(StrEnum):
    """The sub-blocks of a transformer block, a single projection, a cluster of the embedding."""

    ATTENTION = "attention"
    FFN = "ffn"
    EXPERTS = "experts"
    LINEAR = "linear"
    EMBEDDING = "embedding"


@dataclass(frozen=True)
class Site:
    """One place where structure can be removed.

    Of a sub-block, units are columns of its output projection; query heads of one KV group are
    neighbours: unit `g * heads_per_group + h` is head h of group g. Of experts, units are the
    channels of all, those of one expert side by side; experts are the groups. Of a single
    projection, and of a cluster of tokens, units are the rank-one terms of its factors.
    """

    block: int  # -1 for what is in none
    kind: Kind
    units: int  # query heads, FFN channels, or the largest rank
    width: int = 1  # columns of the output projection per unit: head_dim, or 1
    groups: int = 1  # KV groups over which the query heads are spread evenly; experts
    removable: bool = True  # False for the first attention of each layer type: caches look there
    least: int = 0  # query heads or experts that stay where any does
    module: str = ""  # of a single projection: its path within the block; of an expert: its name
    shared: str = ""  # of a single projection: the first one that reads the same inputs

    @property
    def columns(self) -> int:
        """Count the columns of a sub-block's output projection."""
        return self.units * self.width

    @property
    def part(self) -> str:
        """Return what is alike in all blocks: the kind of sub-block, or the projection's path."""
        return self.module or self.kind.value

    @property
    def reads(self) -> str:
        """Return the part whose inputs this site has; moments are kept once for it."""
        return self.shared or self.part

    @property
    def heads_per_group(self) -> int:
        """Count the query heads of each KV group."""
        return self.units // self.groups

    @property
    def whole(self) -> Shape:
        """Return its shape where nothing is removed."""
        return _shape(self.kind, self.groups, self.heads_per_group)

    @property
    def gone(self) -> Shape:
        """Return its shape where nothing is left."""
        return _shape(self.kind, 0, 0)

    def allows(self, left: Shape) -> bool:
        """Tell whether a shape can be left of it: that of a whole site can, and "gone" often."""
        match left:
            case Heads():
                enough = left.units >= self.least
            case Experts():
                enough = left.experts >= self.least
            case Width():
                enough = True
        return enough if left.units else self.removable

    @property
    def each(self) -> list["Site"]:
        """Return what has moments of its own: the site, or each expert of it, as an FFN."""
        if self.kind is not Kind.EXPERTS:
            return [self]
        names = (f"{self.part}.{index}" for index in range(self.groups))
        return [Site(self.block, Kind.FFN, self.heads_per_group, module=name) for name in names]

    @property
    def name(self) -> str:
        """Return a readable key such as `block.3.ffn`."""
        return self.part if self.kind is Kind.EMBEDDING else f"block.{self.block}.{self.part}"


def _shape(kind: Kind, groups: int, per_group: int) -> Shape:
    match kind:
        case Kind.ATTENTION:
            return Heads(groups, per_group)
        case Kind.EXPERTS:
            return Experts(groups, per_group)
        case _:
            return Width(groups * per_group)


Allocation = dict[Site, Bool[Tensor, " units"]]  # True = keep


def architecture(model: PreTrainedModel) -> Architecture:
    """Look up where the model's family keeps its parts; ValueError for an unsupported one."""
    kind = model.config.model_type
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"model: architecture '{kind}' is not supported; use one of {', '.join(ARCHITECTURES)}"
            ", or add it: docs/extending.md says which fit"
        )
    name = model.__class__.__name__  # not its type: what serves it stands in for it
    if ARCHITECTURES[kind].encoder and not name.endswith(HEADS):
        raise ValueError(
            f"model: {name} is not supported; encoders are pruned for a task, as "
            f"...{' or ...'.join(HEADS)}: give one, such as task=sst2"
        )
    if getattr(model.config, "do_layer_norm_before", True) is False:
        raise ValueError(
            "model: OPT with do_layer_norm_before=False (opt-350m) is not supported, since its "
            "norms come after the residual additions; use another size of OPT"
        )
    if kind == "deberta-v2":
        _check_deberta(model.config)
    return ARCHITECTURES[kind]


def _check_deberta(config: PreTrainedConfig) -> None:
    """Raise ValueError for a DeBERTa whose blocks or heads do not stand alone."""
    if getattr(config, "conv_kernel_size", 0):
        raise ValueError(
            f"model: DeBERTa with conv_kernel_size={config.conv_kernel_size} (v2-xlarge) is not "
            "supported, since its convolution lies between the blocks; use deberta-v3"
        )
    if getattr(config, "relative_attention", False) and not getattr(config, "share_att_key", False):
        raise ValueError(
            "model: DeBERTa with share_att_key=False is not supported, since its positions have "
            "projections of their own for every head; use deberta-v3"
        )


def positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model reads at most; some count from behind their padding."""
    longest = getattr(model.config, "max_position_embeddings", None)
    kind = model.config.model_type
    if longest and kind in ("roberta", "mpnet"):  # mpnet's is the token 1, whatever its config says
        padding: Any = 1 if kind == "mpnet" else model.config.pad_token_id
        return longest - padding - 1
    return longest


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the transformer blocks."""
    layers = model.get_submodule(architecture(model).blocks)
    assert isinstance(layers, nn.ModuleList)
    return layers


def final(
    model: PreTrainedModel, hidden: Float[Tensor, "*batch hidden"]
) -> Float[Tensor, "*batch vocabulary"]:
    """Turn what leaves the last block into logits: final norm, projection, head, scale and cap."""
    a = architecture(model)
    for path in filter(None, (a.norm, a.project_out)):
        parent, _, name = path.rpartition(".")
        module = getattr(model.get_submodule(parent), name)  # None where this model has no such
        hidden = hidden if module is None else module(hidden)
    head = model.get_output_embeddings()
    assert head is not None
    logits = head(hidden)
    if scale := getattr(model.config, "logits_scaling", None):  # of granite
        logits = logits / scale
    if cap := getattr(model.config, "final_logit_softcapping", None):  # of gemma2
        logits = torch.tanh(logits / cap) * cap
    return logits


def sites(model: PreTrainedModel) -> list[Site]:
    """List attention, then FFN or experts of each block, read off the modules.

    None where it is gone, or where one of its projections is a product of two already.
    """
    a = architecture(model)
    types = getattr(model.config, "layer_types", None) or ["full"] * len(blocks(model))
    prunable = []
    for index, block in enumerate(blocks(model)):
        groups, heads, width, experts = block_shape(block, a)
        products = ranks(block).keys()
        if groups and not products & {*a.attention_inputs, a.attention_output}:
            size = head_size(block, a)
            removable = a.encoder or index != types.index(types[index])
            least = groups * heads if a.heads_together else 0
            sizes = groups * heads, size, groups
            prunable.append(Site(index, Kind.ATTENTION, *sizes, removable, least))
        if experts:
            least = find(block, a.router).top_k
            sizes = experts * width, 1, experts
            prunable.append(Site(index, Kind.EXPERTS, *sizes, least=least))
        elif width and not products & {*a.ffn_inputs, a.ffn_output}:
            prunable.append(Site(index, Kind.FFN, width, 1))
    return prunable


def linears(model: PreTrainedModel, pattern: str = "*") -> list[Site]:
    """List the projections of each block whose path in it, such as `mlp.up_proj`, fits a glob."""
    a = architecture(model)
    prunable = []
    for index, block in enumerate(blocks(model)):
        for inputs, output in (
            (a.attention_inputs, a.attention_output),
            (a.ffn_inputs, a.ffn_output),
        ):
            for path, shared in (*((i, inputs[0]) for i in inputs), (output, output)):
                module = find(block, path)
                if isinstance(module, nn.Linear | Conv1D) and fnmatch(path, pattern):
                    rank = min(weight(module).shape)
                    prunable.append(Site(index, Kind.LINEAR, rank, module=path, shared=shared))
    return prunable


def chosen_linears(model: PreTrainedModel, modules: str) -> list[Site]:
    """List the projections that `method.modules` names; ValueError where there are none."""
    chosen = linears(model, modules)
    if not chosen:
        names = dict.fromkeys(site.module for site in linears(model))
        raise ValueError(
            f"method.modules={modules!r} fits no projection: there are {', '.join(names)}"
        )
    if any(map(ranks, blocks(model))):
        raise ValueError(
            f"method.modules={modules!r}: projections of this model are products of two already: "
            "prune the dense model, or evaluate this one with method=dense"
        )
    sizes = {site.module: tuple(weight(projection(model, site)).shape) for site in chosen}
    for site in chosen:
        if (size := tuple(weight(projection(model, site)).shape)) != sizes[site.module]:
            raise ValueError(
                f"method.modules={modules!r}: {site.module} is {size} in block {site.block} and "
                f"{sizes[site.module]} in another: ranks are sought in blocks that are alike; give "
                "a method of whole sub-blocks, such as method=ziplm"
            )
    return chosen


def projection(model: PreTrainedModel, site: Site) -> nn.Module:
    """Return the projection whose weight a site changes; a sub-block's is that of its output.

    Of experts it is the module that has the weights of all.
    """
    a = architecture(model)
    block = blocks(model)[site.block]
    paths = {
        Kind.ATTENTION: a.attention_output,
        Kind.FFN: a.ffn_output,
        Kind.EXPERTS: a.experts,
        Kind.LINEAR: site.module,
    }
    return block.get_submodule(paths[site.kind])


def norm_behind(model: PreTrainedModel, site: Site) -> str | None:
    """Return the path in its block of the norm that goes with a site and reads what it gives.

    None with norms in front of the sub-blocks: those read the stream alone.
    """
    a = architecture(model)
    if not a.post_norm or site.kind is Kind.LINEAR:
        return None
    return a.attention_norm if site.kind is Kind.ATTENTION else a.ffn_norm


def sub_block(model: PreTrainedModel, site: Site) -> Kind:
    """Return the sub-block that a site of a block is or lies in."""
    a = architecture(model)
    ffn = site.kind in (Kind.FFN, Kind.EXPERTS) or site.module in (*a.ffn_inputs, a.ffn_output)
    return Kind.FFN if ffn else Kind.ATTENTION


def dividing_norms(model: PreTrainedModel, index: int) -> dict[Kind, list[nn.Module | None]]:
    """Return the norms that divide what each sub-block of a block gives, up to its next reader.

    None is the norm of a later block, which reads the stream as it leaves this one.
    """
    a, block = architecture(model), blocks(model)[index]
    of_attention, of_ffn = block.get_submodule(a.attention_norm), block.get_submodule(a.ffn_norm)
    if a.post_norm:
        return {Kind.ATTENTION: [of_attention], Kind.FFN: [of_ffn]}
    parallel = getattr(block, "use_parallel_residual", False)
    after = {Kind.ATTENTION: None if parallel else of_ffn, Kind.FFN: None}
    outputs = {Kind.ATTENTION: a.attention_output_norm, Kind.FFN: a.ffn_output_norm}
    norms: dict[Kind, list[nn.Module | None]] = {}
    for kind, path in outputs.items():
        own = [block.get_submodule(path)] if path else []
        there = (norm for norm in own if not isinstance(norm, nn.Identity))
        norms[kind] = [*there, after[kind]]
    return norms


def a_norm(model: PreTrainedModel, index: int) -> nn.Module:
    """Return a norm like those of a block, its own if one is left; all are of one kind."""
    a, layers = architecture(model), blocks(model)
    paths = (a.attention_norm, a.ffn_norm)
    norms = (find(block, path) for block in (layers[index], *layers) for path in paths)
    return next(norm for norm in norms if not isinstance(norm, nn.Identity))


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


def replace_weight_(module: nn.Module, W: Float[Tensor, "rows columns"]) -> None:
    """Give a projection an [outputs, inputs] matrix that no other model shares."""
    old = module.weight
    assert isinstance(old, nn.Parameter)
    assert W.shape == weight(module).shape, f"{tuple(W.shape)} for {tuple(weight(module).shape)}"
    own = (W.T if isinstance(module, Conv1D) else W).to(old).contiguous()
    module.weight = nn.Parameter(own, old.requires_grad)


def give_output_biases_(model: PreTrainedModel) -> None:
    """Give all output projections biases of zeros, where the family has none."""
    a = architecture(model)
    outputs = [
        find(block, path) for block in blocks(model) for path in (a.attention_output, a.ffn_output)
    ]
    if any(isinstance(module, nn.Linear) and module.bias is None for module in outputs):
        add_output_biases_(blocks(model), a)
        model.config.output_bias = True  # type: ignore[attr-defined]


@torch.no_grad()
def add_bias_(model: PreTrainedModel, site: Site, shift: Float[Tensor, " rows"]) -> None:
    """Add to the bias of an output projection; a family without such biases gets them all."""
    give_output_biases_(model)
    module = projection(model, site)
    bias = module.bias
    assert isinstance(bias, nn.Parameter)
    module.bias = nn.Parameter(
        bias + shift.to(bias), bias.requires_grad
    )  # not those of a model that shares them


def shape(site: Site, keep: Bool[Tensor, " units"]) -> Shape:
    """Return what is left of a site.

    ValueError where the kept KV groups would keep different numbers of query heads: `repeat_kv`
    would then pair queries with the wrong keys without a word. So where experts would keep
    different numbers of channels: their weights are stacked.
    """
    if site.kind not in (Kind.ATTENTION, Kind.EXPERTS):
        return Width(int(keep.sum()))
    counts = keep.reshape(site.groups, -1).sum(1)
    counts = counts[counts > 0].tolist()
    if not counts:
        return site.gone
    if len(set(counts)) > 1:
        attention = site.kind is Kind.ATTENTION
        what = ("KV groups", "query heads") if attention else ("experts", "channels")
        raise ValueError(
            f"{site.name}: kept {what[0]} keep {counts} {what[1]}; keep the same number in each"
        )
    return _shape(site.kind, len(counts), counts[0])
