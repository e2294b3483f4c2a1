"""vLLM's own Llama with blocks of different shapes, which also are those of Mistral and Qwen.

It runs where vLLM is, and imports nothing of this package. `pruned_blocks` in the checkpoint's
config says the shape of a block; a dense checkpoint has none.
"""

from copy import copy
from importlib import import_module
from typing import Any

import torch
from torch import nn

llama: Any = import_module("vllm.model_executor.models.llama")
qwen3: Any = import_module("vllm.model_executor.models.qwen3")
PRODUCTS = ("ranks", "embedding_clusters")  # keys of the config that say what is not served


class Nothing(nn.Module):
    """Stand in for what was removed: it adds zero to the residual stream."""

    def __init__(self, **kwargs):
        super().__init__()

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


class Sum(nn.Module):
    """Stand in for the norm of what was removed: it only adds to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is None:
            return hidden_states
        total = hidden_states + residual
        return total, total


def qwen3_attention(config: Any, bias: bool, bias_o_proj: bool, **values) -> nn.Module:
    """Build an attention with norms of queries and keys from the values that Llama's takes."""
    types = getattr(config, "layer_types", None)
    sliding = types and types[llama.extract_layer_index(values["prefix"])] == "sliding_attention"
    attention = qwen3.Qwen3Attention(
        rope_parameters=config.rope_parameters,
        max_position=values.pop("max_position_embeddings"),
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        qkv_bias=bias,
        per_layer_sliding_window=config.sliding_window if sliding else None,
        **values,
    )
    if bias_o_proj:
        attention.o_proj = with_bias(attention.o_proj, values["quant_config"])
    return attention


def with_bias(projection: Any, quantisation: Any) -> nn.Module:
    """Return a projection back to the residual stream that has a bias."""
    sizes = projection.input_size, projection.output_size
    return llama.RowParallelLinear(
        *sizes, bias=True, quant_config=quantisation, prefix=projection.prefix
    )


class Block(llama.LlamaDecoderLayer):
    """A block of its own heads and FFN width, or without one of the two."""

    def __init__(self, vllm_config: Any, prefix: str):
        config = copy(vllm_config.model_config.hf_config)
        kind = {"qwen3": qwen3_attention}.get(config.model_type, llama.LlamaAttention)
        if config.model_type == "qwen2":
            config.qkv_bias = True
        whole = {"query_heads": config.num_attention_heads, "ffn": config.intermediate_size}
        blocks = getattr(config, "pruned_blocks", None)
        left = blocks[llama.extract_layer_index(prefix)] if blocks else whole
        config.num_attention_heads = left["query_heads"]
        config.num_key_value_heads = left.get("kv_heads", config.num_key_value_heads)
        config.intermediate_size = left["ffn"] or whole["ffn"]
        super().__init__(vllm_config, prefix, config, kind if left["query_heads"] else Nothing)
        if not left["query_heads"]:
            self.input_layernorm = Sum()
        if not left["ffn"]:
            self.mlp, self.post_attention_layernorm = Nothing(), Sum()
        if getattr(config, "output_bias", False):
            quantisation = self.get_quant_config(vllm_config)
            if left["query_heads"]:
                self.self_attn.o_proj = with_bias(self.self_attn.o_proj, quantisation)
            if left["ffn"]:
                self.mlp.down_proj = with_bias(self.mlp.down_proj, quantisation)


class PrunedForCausalLM(llama.LlamaForCausalLM):
    """A model of such blocks."""

    def __init__(self, *, vllm_config: Any, prefix: str = "", layer_type: Any = Block):
        config = vllm_config.model_config.hf_config
        if any(getattr(config, key, None) for key in PRODUCTS):
            raise ValueError(
                f"{vllm_config.model_config.model}: vLLM does not serve projections and "
                "embeddings that are products"
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
