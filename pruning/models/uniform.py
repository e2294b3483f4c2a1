"""Models of equal blocks, to time a block as it runs in a model."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.shrink import copy_sharing_weights
from pruning.models.sites import blocks

TOKENS = 256  # of the vocabulary: the time of embedding and head is no block's


@torch.no_grad()
def uniform(model: PreTrainedModel, block: nn.Module, copies: int) -> PreTrainedModel:
    """Return a model of so many copies of a block, each with weights of its own.

    Its vocabulary is a small one. `block` is of `model`, or a shrunken one of it.
    """
    made: Any = copy_sharing_weights(model)
    layers = blocks(made)
    del layers[:]
    for index in range(copies):
        layers.append(deepcopy(block))
        for module in layers[index].modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    config = made.config  # the copy's own
    config.num_hidden_layers = copies
    if types := getattr(config, "layer_types", None):
        config.layer_types = types[:1] * copies
    config.vocab_size = min(TOKENS, config.vocab_size)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding), "products of embeddings are no blocks"
    small = nn.Embedding(config.vocab_size, embedding.embedding_dim)
    made.set_input_embeddings(small.to(embedding.weight))
    if (head := model.get_output_embeddings()) is not None:
        sizes = embedding.embedding_dim, config.vocab_size
        smaller = nn.Linear(*sizes, bias=head.bias is not None)  # type: ignore[union-attr]
        made.set_output_embeddings(smaller.to(embedding.weight))
    return made
