"""Causal language models whose blocks differ in attention heads and FFN width.

This file travels inside pruned checkpoints and needs nothing but torch and transformers. The shape
of every block comes from `per_layer_config` in config.json, in the schema of transformers itself:
`{block: {heads, kv heads, intermediate size, "skip": ["attention", "mlp"]}}`, differences only.
With `output_bias` the projections back to the residual stream have biases that the family has not.
`ranks` names the projections that are a product of two: `{block: {"self_attn.q_proj": 96}}`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    GemmaForCausalLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralForCausalLM,
    OPTForCausalLM,
    PreTrainedConfig,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Architecture:
    """Where a family keeps what can be cut: module paths and names of config values."""

    blocks: str = "model.layers"
    norm: str = "model.norm"
    project_out: str | None = None  # between the final norm and the head
    attention: str = "self_attn"
    attention_norm: str = "input_layernorm"
    attention_inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # one name: fused
    attention_output: str = "o_proj"
    ffn: str | None = "mlp"  # None: the projections are in the block itself
    ffn_norm: str = "post_attention_layernorm"
    ffn_inputs: tuple[str, ...] = ("gate_proj", "up_proj")
    ffn_output: str = "down_proj"
    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"  # None: as many as query heads
    intermediate: str = "intermediate_size"


ARCHITECTURES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), Architecture()),
    "gpt2": Architecture(
        blocks="transformer.h",
        norm="transformer.ln_f",
        attention="attn",
        attention_norm="ln_1",
        attention_inputs=("c_attn",),
        attention_output="c_proj",
        ffn_norm="ln_2",
        ffn_inputs=("c_fc",),
        ffn_output="c_proj",
        heads="n_head",
        kv_heads=None,
        intermediate="n_inner",
    ),
    "opt": Architecture(
        blocks="model.decoder.layers",
        norm="model.decoder.final_layer_norm",
        project_out="model.decoder.project_out",
        attention_norm="self_attn_layer_norm",
        attention_output="out_proj",
        ffn=None,
        ffn_norm="final_layer_norm",
        ffn_inputs=("fc1",),
        ffn_output="fc2",
        kv_heads=None,
        intermediate="ffn_dim",
    ),
}


class LowRank(nn.Module):
    """Stand in for a projection of rank `rank`: out = B A x + bias."""

    def __init__(self, columns: int, rank: int, rows: int, bias: bool = False):
        super().__init__()
        self.A = nn.Linear(columns, rank, bias=False)
        self.B = nn.Linear(rank, rows, bias=bias)

    @property
    def bias(self) -> nn.Parameter | None:
        return self.B.bias

    @property
    def rank(self) -> int:
        return self.A.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.B(self.A(inputs))


class Zero(nn.Module):
    """Stand in for a removed FFN: the residual stream plus a 0-dim zero is itself."""

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return hidden_states.new_zeros(())


class ZeroAttention(Zero):
    """Stand in for a removed attention, which also returns its weights."""

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, None]:
        return hidden_states.new_zeros(()), None


def block_shape(block: nn.Module, architecture: Architecture) -> tuple[int, int, int]:
    """Return (KV groups, query heads per group, FFN width) of a block; 0 where it is gone."""
    groups = heads = width = 0
    attention = getattr(block, architecture.attention)
    output = getattr(attention, architecture.attention_output, None)
    if output is not None:
        total = groups = _size(output)[1] // attention.head_dim
        if len(architecture.attention_inputs) > 1:
            key = getattr(attention, architecture.attention_inputs[1])
            groups = _size(key)[0] // attention.head_dim
        assert total % groups == 0, f"{total} query heads do not spread over {groups} KV heads"
        heads = total // groups
    output = getattr(_ffn(block, architecture), architecture.ffn_output, None)
    if not isinstance(output, Zero | None):
        width = _size(output)[1]
    return groups, heads, width


def resize_block_(
    block: nn.Module, architecture: Architecture, groups: int, heads: int, width: int
) -> None:
    """Give a block `groups` KV groups of `heads` query heads each and an FFN of `width`.

    Projections that change are replaced by new ones with undefined values on the same device;
    existing parameters are never written. Zeros mean that the sub-block goes, with its norm.
    """
    if getattr(block, "do_layer_norm_before", True) is False:
        raise ValueError(
            "do_layer_norm_before=False: the norms of this OPT come after the residual additions, "
            "so its sub-blocks cannot be resized; use a size other than 350m"
        )
    assert (groups == 0) == (heads == 0), f"{groups} KV groups of {heads} query heads"
    old_groups, old_heads, old_width = block_shape(block, architecture)
    if (groups, heads) != (old_groups, old_heads):
        assert max(groups - old_groups, heads - old_heads) <= 0, "a block can only shrink"
        _resize_attention_(block, architecture, groups, heads)
    if width != old_width:
        assert width <= old_width, "a block can only shrink"
        _resize_ffn_(block, architecture, width)


def _resize_attention_(block: nn.Module, a: Architecture, groups: int, heads: int) -> None:
    if groups == 0:
        setattr(block, a.attention, ZeroAttention())
        setattr(block, a.attention_norm, nn.Identity())
        return
    assert a.kv_heads or heads == 1, "without GQA every group is one query head"
    attention = getattr(block, a.attention)
    rows = [groups * heads * attention.head_dim, *2 * [groups * attention.head_dim]]
    if len(a.attention_inputs) == 1:
        rows = [sum(rows)]
    for name, count in zip(a.attention_inputs, rows, strict=True):
        _resize_(attention, name, rows=count)
    _resize_(attention, a.attention_output, columns=groups * heads * attention.head_dim)
    if a.kv_heads:
        attention.num_key_value_groups = heads
    else:
        attention.num_heads = groups
        attention.split_size = groups * attention.head_dim


def _resize_ffn_(block: nn.Module, a: Architecture, width: int) -> None:
    ffn = _ffn(block, a)
    if width == 0:
        for name in (a.ffn,) if a.ffn else (*a.ffn_inputs, a.ffn_output):
            setattr(block, name, Zero())
        setattr(block, a.ffn_norm, nn.Identity())
        return
    for name in a.ffn_inputs:
        _resize_(ffn, name, rows=width)
    _resize_(ffn, a.ffn_output, columns=width)
    if hasattr(ffn, "intermediate_size"):
        ffn.intermediate_size = width


def _ffn(block: nn.Module, architecture: Architecture) -> Any:
    return getattr(block, architecture.ffn) if architecture.ffn else block


def _size(module: Any) -> tuple[int, int]:
    """Return the output and input features of a projection."""
    if isinstance(module, LowRank):
        return module.B.out_features, module.A.in_features
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def add_output_biases_(model: nn.Module, architecture: Architecture) -> None:
    """Give every projection back to the residual stream a bias, of zeros where it had none."""
    for block in model.get_submodule(architecture.blocks).children():
        attention = getattr(block, architecture.attention)
        for part, name in (
            (attention, architecture.attention_output),
            (_ffn(block, architecture), architecture.ffn_output),
        ):
            output: Any = getattr(part, name, None)
            if isinstance(output, nn.Linear) and output.bias is None:
                zeros = output.weight.new_zeros(_size(output)[0])
                output.bias = nn.Parameter(zeros, output.weight.requires_grad)


def factorise_(block: nn.Module, path: str, rank: int) -> LowRank:
    """Replace the projection at `path` in a block by two with undefined values, and return them."""
    parent, _, name = path.rpartition(".")
    old: Any = block.get_submodule(path)
    rows, columns = _size(old)
    with torch.device("meta"):
        new = LowRank(columns, rank, rows, bias=old.bias is not None)
    new = new.to(old.weight.dtype).to_empty(device=old.weight.device).train(old.training)
    setattr(block.get_submodule(parent), name, new.requires_grad_(old.weight.requires_grad))
    return new


def ranks(block: nn.Module) -> dict[str, int]:
    """Return the rank of every projection of a block that is a product of two, by its path."""
    return {path: m.rank for path, m in block.named_modules() if isinstance(m, LowRank)}


def _resize_(parent: nn.Module, name: str, rows: int | None = None, columns: int | None = None):
    """Replace a projection by an empty one with other numbers of rows or columns."""
    old = getattr(parent, name)
    rows, columns = rows or _size(old)[0], columns or _size(old)[1]
    with torch.device("meta"):
        if isinstance(old, Conv1D):
            new = Conv1D(rows, columns)
        else:
            new = nn.Linear(columns, rows, bias=old.bias is not None)
    new = new.to(old.weight.dtype).to_empty(device=old.weight.device).train(old.training)
    setattr(parent, name, new.requires_grad_(old.weight.requires_grad))


class _Pruned:
    """Build the dense model, then resize every block as `per_layer_config` says."""

    def __init__(self, config: PreTrainedConfig, *args, **kwargs):
        # The dense classes read per-layer values from the global config, and transformers warns
        # where a heterogeneous config is read so: it is homogeneous while they do.
        layers = list(config.per_layer_config)
        overrides = config.to_dict().get("per_layer_config")
        config.per_layer_config = None
        try:
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        finally:
            config.per_layer_config = overrides
        a = ARCHITECTURES[config.model_type]
        changed = {int(index): override for index, override in (overrides or {}).items()}
        blocks = self.get_submodule(a.blocks)  # type: ignore[attr-defined]
        for index, block in enumerate(blocks):
            if index not in changed:
                continue
            groups, heads, width = block_shape(block, a)
            skip = getattr(layers[index], "skip", ())
            override = changed[index]
            total = override.get(a.heads, groups * heads)
            groups = override.get(a.kv_heads, groups) if a.kv_heads else total
            assert total % groups == 0, f"block {index}: {total} query, {groups} KV heads"
            heads, width = total // groups, override.get(a.intermediate, width)
            if "attention" in skip:
                groups = heads = 0
            resize_block_(block, a, groups, heads, 0 if "mlp" in skip else width)
        if getattr(config, "output_bias", False):
            add_output_biases_(self, a)  # type: ignore[arg-type]
        for index, paths in (getattr(config, "ranks", None) or {}).items():
            for path, rank in paths.items():
                factorise_(blocks[int(index)], path, rank)  # type: ignore[index]
        self.post_init()  # type: ignore[attr-defined]


class PrunedLlamaForCausalLM(_Pruned, LlamaForCausalLM):
    pass


class PrunedMistralForCausalLM(_Pruned, MistralForCausalLM):
    pass


class PrunedQwen2ForCausalLM(_Pruned, Qwen2ForCausalLM):
    pass


class PrunedQwen3ForCausalLM(_Pruned, Qwen3ForCausalLM):
    pass


class PrunedGemmaForCausalLM(_Pruned, GemmaForCausalLM):
    pass


class PrunedGPT2LMHeadModel(_Pruned, GPT2LMHeadModel):
    pass


class PrunedOPTForCausalLM(_Pruned, OPTForCausalLM):
    pass
