"""Choose which of llama.cpp's architectures a model is, and what its blocks are there.

`deci` has heads and widths of its own in each block, and so has `openelm`, whose queries and keys
are normed. Neither takes an FFN of width 0, and the first block says whether there is any
attention at all: there, what is gone is written as a little that gives zero.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.models.modeling_pruned import block_shape, find, head_size, ranks
from pruning.models.sites import architecture, blocks

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
UNEVEN = ("deci", "openelm")
WIDTH = 32  # of an FFN that gives zero
ROPES = ("default", "linear", "llama3")  # those that are the same for every length of text


@dataclass(frozen=True)
class Sizes:
    """The sizes of a block in the file, and which halves are there only to give zero."""

    groups: int
    per_group: int
    width: int
    no_attention: bool = False
    no_ffn: bool = False


@dataclass(frozen=True)
class Layout:
    """A model as one of llama.cpp's architectures."""

    name: str
    stays: list[int]  # indices of the blocks that are written
    written: list[Sizes]
    head_size: int
    rope_base: float
    context: int

    @property
    def uneven(self) -> bool:
        """Say whether every block has sizes of its own."""
        return self.name in UNEVEN

    @property
    def interleaved(self) -> bool:
        """Say whether the engine rotates neighbours."""
        return self.name in ("llama", "deci")

    @property
    def fused(self) -> bool:
        """Say whether queries, keys and values are one tensor."""
        return self.name == "openelm"

    @property
    def normed(self) -> bool:
        """Say whether queries and keys are normed."""
        return self.name in ("qwen3", "openelm")


def layout(model: PreTrainedModel) -> Layout:
    """Return what a model is in llama.cpp; ValueError where there is no such thing."""
    config: Any = model.config
    if config.model_type not in FAMILIES:
        raise _refusal(
            f"models of the family {config.model_type} are not written to GGUF",
            f"a model of {', '.join(FAMILIES)}",
        )
    _refuse_products(model)
    a = architecture(model)
    shapes = [block_shape(block, a)[:3] for block in blocks(model)]
    stays = [index for index, shape in enumerate(shapes) if any(shape)]
    if not stays:
        raise _refusal("nothing is left of any block", "a lower speedup")
    left = [shapes[index] for index in stays]
    name = _architecture(model, left, [blocks(model)[index] for index in stays])
    written = []
    for groups, per_group, width in left:
        first = not written
        dummy = not groups and (first or name == "openelm")
        if dummy:
            groups = per_group = 1
        written.append(Sizes(groups, per_group, width or WIDTH, dummy, not width))
    with_attention = next((i for i, shape in enumerate(shapes) if shape[0]), None)
    size = _head_size(config)
    if with_attention is not None:
        size = head_size(blocks(model)[with_attention], a)
    rope = config.rope_parameters
    window = config.max_position_embeddings
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        config.model_type == "mistral" and config.sliding_window
    ):
        window = min(window, config.sliding_window)
    return Layout(name, stays, written, size, float(rope["rope_theta"]), window)


def _head_size(config: Any) -> int:
    """Return the columns of a head as the config has them."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _architecture(
    model: PreTrainedModel, shapes: list[tuple[int, int, int]], stays: list[nn.Module]
) -> str:
    """Return the first architecture that has all of a model's parts."""
    config: Any = model.config
    equal = len(set(shapes)) == 1 and 0 not in shapes[0]
    scaled = rope_factors(model) is not None
    biased = any(_has_bias(block, ("self_attn.o_proj", "mlp.down_proj")) for block in stays)
    if config.model_type in ("llama", "mistral"):
        return "llama" if equal else "deci"
    if config.model_type == "qwen2":
        groups, per_group, _ = shapes[0]
        whole = groups * per_group * _head_size(config) == config.hidden_size
        return "qwen2" if equal and whole and not biased and not scaled else "deci"
    if biased or scaled or any(_has_bias(b, ("self_attn.q_proj",)) for b in stays):
        raise _refusal(
            "a qwen3 with biases or scaled positions is not written to GGUF",
            "a method without output biases, such as method=ziplm",
        )
    if equal:
        return "qwen3"
    if not tied(model):
        raise _refusal(
            "a qwen3 of uneven blocks has no untied head there",
            "a model of llama, mistral or qwen2",
        )
    return "openelm"


def _has_bias(block: nn.Module, paths: tuple[str, ...]) -> bool:
    """Say whether any of some projections has a bias."""
    return any(getattr(find(block, path), "bias", None) is not None for path in paths)


def _refuse_products(model: PreTrainedModel) -> None:
    """Raise ValueError where a projection or the embedding is a product of two."""
    if any(map(ranks, blocks(model))) or hasattr(model.get_input_embeddings(), "ranks"):
        raise _refusal(
            "projections and embeddings that are a product of two are not written to GGUF",
            "a method of whole sub-blocks, such as method=ziplm",
        )


def tied(model: PreTrainedModel) -> bool:
    """Say whether the head is the embedding."""
    ends: Any = model.get_input_embeddings(), model.get_output_embeddings()
    return ends[0].weight.data_ptr() == ends[1].weight.data_ptr()


def rope_factors(model: PreTrainedModel) -> Tensor | None:
    """Return by what each frequency of the positions is divided; None where all are plain."""
    config: Any = model.config
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ROPES:
        raise _refusal(
            f"positions of the type {rope['rope_type']} are not written to GGUF",
            f"a model with those of {', '.join(ROPES)}",
        )
    rotary: Any = model.get_submodule("model.rotary_emb")
    frequencies = rotary.inv_freq.float().cpu()
    count = len(frequencies)
    plain = float(rope["rope_theta"]) ** -(torch.arange(count, dtype=torch.float32) / count)
    factors = plain / frequencies
    return None if torch.allclose(factors, torch.ones(count), rtol=1e-4) else factors


def _refusal(wrong: str, remedy: str) -> ValueError:
    return ValueError(f"runtime=llama_cpp: {wrong}: give {remedy}, or another runtime")
