"""Which blocks a model has that llama.cpp times one in."""

from torch import nn
from transformers import PreTrainedModel

from pruning.models.modeling_pruned import block_shape
from pruning.models.shape import Heads, Width
from pruning.models.shrink import resized
from pruning.models.sites import architecture, blocks
from pruning.runtimes.gguf_layout import WIDTH


def behind_a_small_one(model: PreTrainedModel, block: nn.Module, copies: int) -> list[nn.Module]:
    """Return a small block, the same whatever is timed, and so many times another.

    The small one has attention, without which the engine takes a model to have none. What is left
    of nothing is what is written for an FFN that is gone.
    """
    sizes = [block_shape(layer, architecture(model)) for layer in blocks(model)]
    with_attention = next(index for index, size in enumerate(sizes) if size[0])
    widest = max(range(len(sizes)), key=lambda index: sizes[index][2])
    if not any(block_shape(block, architecture(model))):
        block = resized(model, Heads(0, 0), Width(min(WIDTH, sizes[widest][2])), widest)
    width = Width(min(WIDTH, sizes[with_attention][2]))
    return [resized(model, Heads(1, 1), width, with_attention), *[block] * copies]
