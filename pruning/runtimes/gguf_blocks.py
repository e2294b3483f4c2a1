"""Models of equal blocks, to time a block as it runs in one."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.modeling_pruned import block_shape
from pruning.models.shape import Heads, Width
from pruning.models.shrink import copy_sharing_weights, randomised_, resized
from pruning.models.sites import architecture, blocks
from pruning.runtimes.gguf_layout import WIDTH

TOKENS = 256  # of the vocabulary: the time of embedding and head is no block's


@torch.no_grad()
def stacked(model: PreTrainedModel, block: nn.Module, copies: int) -> PreTrainedModel:
    """Return a model of a small block, the same in all of these, and so many of another.

    The small one has attention, without which the engine takes a model to have none. What is left
    of nothing is what is written for an FFN that is gone. The vocabulary is a small one.
    """
    made: Any = copy_sharing_weights(model)
    sizes = [block_shape(layer, architecture(model)) for layer in blocks(model)]
    with_attention = next(index for index, size in enumerate(sizes) if size[0])
    widest = max(range(len(sizes)), key=lambda index: sizes[index][2])
    if not any(block_shape(block, architecture(model))):
        block = resized(model, Heads(0, 0), Width(min(WIDTH, sizes[widest][2])), widest)
    width = Width(min(WIDTH, sizes[with_attention][2]))
    first = resized(model, Heads(1, 1), width, with_attention)
    layers = blocks(made)
    del layers[:]
    layers.extend([first, *[block] * copies])
    made.config = deepcopy(model.config)
    made.config.vocab_size = min(TOKENS, model.config.vocab_size)
    embedding: Any = model.get_input_embeddings()
    small: Any = nn.Embedding(made.config.vocab_size, embedding.embedding_dim)
    small = randomised_(small.to(embedding.weight))
    made.set_input_embeddings(small)
    made.get_output_embeddings().weight = small.weight
    return made
