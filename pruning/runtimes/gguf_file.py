"""Write a dense or pruned model as one GGUF file, which llama.cpp reads."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.models.modeling_pruned import find
from pruning.models.sites import architecture, blocks
from pruning.runtimes.gguf_layout import Layout, Sizes, layout, rope_factors, tied
from pruning.runtimes.gguf_precision import Precision
from pruning.runtimes.gguf_quantise import quantise_
from pruning.runtimes.gguf_tokenizer import add_tokenizer

ATTENTION = "self_attn.%s_proj"
HALVES = ("q", "k")  # projections whose rows are rotated


logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)  # it names every file

FILE_TYPES = {
    Precision.f32: LlamaFileType.ALL_F32,
    Precision.f16: LlamaFileType.MOSTLY_F16,
    Precision.q8_0: LlamaFileType.MOSTLY_Q8_0,
    Precision.q4_k_m: LlamaFileType.MOSTLY_Q4_K_M,
}


@dataclass(frozen=True)
class Entry:
    """A tensor with its place in the file and how it is stored there."""

    name: str
    tensor: Tensor
    stored: GGMLQuantizationType

    def array(self) -> np.ndarray:
        """Return the bytes that are written."""
        values = self.tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        return gguf.quantize(values, self.stored)


def check_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where `write_gguf` would, for a family, shapes or a tokenizer."""
    add_tokenizer(GGUFWriter(None, layout(model).name), tokenizer, model.config.vocab_size)


@torch.no_grad()
def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    path: Path,
    precision: Precision = Precision.f16,
) -> None:
    """Write a model with its tokenizer, or token ids alone, whole or not at all.

    Blocks of which nothing is left are dropped, and the others renumbered. ValueError where
    llama.cpp has no such model.
    """
    made = layout(model)
    partial = path.with_name(f".{path.name}.partial")
    writer = GGUFWriter(partial, made.name)
    try:
        _add_sizes(writer, model, made)
        writer.add_file_type(FILE_TYPES[precision])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_tokenizer(writer, tokenizer, model.config.vocab_size)
        entries = [Entry(n, t, _stored(t, precision)) for n, t in tensors(model, made)]
        for entry in entries:
            shape = entry.tensor.shape
            size = gguf.quant_shape_to_byte_shape(shape, entry.stored)
            count = int(np.prod(size))
            writer.add_tensor_info(entry.name, shape, np.dtype(np.float32), count, entry.stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(entry.array())
        writer.close()
        if precision is Precision.q4_k_m:
            quantise_(partial, FILE_TYPES[precision], torch.get_num_threads())
        os.replace(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def _stored(tensor: Tensor, precision: Precision) -> GGMLQuantizationType:
    """Return how a tensor is stored."""
    if tensor.ndim == 1 or precision is Precision.f32:
        return GGMLQuantizationType.F32
    block = gguf.GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0][0]
    if precision is Precision.q8_0 and tensor.shape[-1] % block == 0:
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType.F16


def _add_sizes(writer: GGUFWriter, model: PreTrainedModel, made: Layout) -> None:
    """Add what the engine builds the model from."""
    config: Any = model.config
    shapes = made.written
    counts = [
        [shape.groups * shape.per_group for shape in shapes],
        [shape.groups for shape in shapes],
        [shape.width for shape in shapes],
    ]
    heads, groups, widths = counts if made.uneven else [count[0] for count in counts]
    writer.add_name(Path(str(config.name_or_path)).name or config.model_type)
    writer.add_context_length(made.context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(shapes))
    writer.add_feed_forward_length(widths)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(made.head_size)
    writer.add_value_length(made.head_size)
    writer.add_rope_dimension_count(made.head_size)
    writer.add_rope_freq_base(made.rope_base)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def tensors(model: PreTrainedModel, made: Layout) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor by its name in the file, as the engine wants its rows."""
    a, parts = architecture(model), dict(model.named_parameters())
    yield "token_embd.weight", embedding(model)
    if (factors := rope_factors(model)) is not None:
        yield "rope_freqs.weight", factors
    stays = [blocks(model)[index] for index in made.stays]
    for place, (block, shape) in enumerate(zip(stays, made.written, strict=True)):
        for name, tensor in (
            *_attention(block, shape, model, made),
            *_ffn(block, shape, model),
        ):
            yield f"blk.{place}.{name}", tensor
    yield "output_norm.weight", parts[f"{a.norm}.weight"]
    if not tied(model):
        yield "output.weight", parts["lm_head.weight"]


def embedding(model: PreTrainedModel) -> Tensor:
    """Return the embedding, which has the type and the device of what stands in for parts."""
    module: Any = model.get_input_embeddings()
    return module.weight


def _attention(
    block: nn.Module, shape: Sizes, model: PreTrainedModel, made: Layout
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an attention; of one that is gone those of a head that gives zero."""
    if not shape.groups:
        return
    hidden, size = model.config.hidden_size, made.head_size
    like = embedding(model)
    if shape.no_attention:
        yield "attn_norm.weight", like.new_ones(hidden)
        inputs = {part: {"weight": like.new_zeros(size, hidden)} for part in "qkv"}
        norms = {half: like.new_ones(size) for half in HALVES}
        output = {"weight": like.new_zeros(hidden, size)}
    else:
        yield "attn_norm.weight", find(block, "input_layernorm").weight
        inputs = {part: dict(find(block, ATTENTION % part).named_parameters()) for part in "qkv"}
        norms = {
            half: norm.weight for half in HALVES if (norm := find(block, f"self_attn.{half}_norm"))
        }
        output = dict(find(block, ATTENTION % "o").named_parameters())
    if made.interleaved:
        counts = {"q": shape.groups * shape.per_group, "k": shape.groups}
        for half, heads in counts.items():
            inputs[half] = {n: interleaved(t, heads) for n, t in inputs[half].items()}
    if made.fused:
        yield "attn_qkv.weight", torch.cat([inputs[part]["weight"] for part in "qkv"])
    else:
        for part, named in inputs.items():
            for name, tensor in named.items():
                yield f"attn_{part}.{name}", tensor
    if made.normed:
        for half, tensor in norms.items():
            yield f"attn_{half}_norm.weight", tensor
    for name, tensor in output.items():
        yield f"attn_output.{name}", tensor


def _ffn(block: nn.Module, shape: Sizes, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an FFN; of one that is gone those of a narrow one that gives zero."""
    like, hidden = embedding(model), model.config.hidden_size
    if shape.no_ffn:
        yield "ffn_norm.weight", like.new_ones(hidden)
        for part in ("gate", "up"):
            yield f"ffn_{part}.weight", like.new_zeros(shape.width, hidden)
        yield "ffn_down.weight", like.new_zeros(hidden, shape.width)
        return
    yield "ffn_norm.weight", find(block, "post_attention_layernorm").weight
    for part in ("gate", "up", "down"):
        for name, tensor in find(block, f"mlp.{part}_proj").named_parameters():
            yield f"ffn_{part}.{name}", tensor


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Order the rows of each head such that neighbours are rotated together, not halves."""
    rest = tensor.shape[1:]
    return tensor.reshape(heads, 2, -1, *rest).transpose(1, 2).reshape(-1, *rest)
