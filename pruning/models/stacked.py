"""Models of given blocks, to time a block as it runs in a model."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.shrink import copy_block, copy_sharing_weights, randomised_
from pruning.models.sites import blocks

TOKENS = 256  # of the vocabulary: the time of embedding and head is no block's


@torch.no_grad()
def stacked(model: PreTrainedModel, layers: Sequence[nn.Module]) -> PreTrainedModel:
    """Return a model of these blocks, whose weights it shares, with a small vocabulary.

    Each is of `model`, or a shrunken one of it. The head, if there is one, is the embedding.
    """
    made: Any = copy_sharing_weights(model)
    del blocks(made)[:]
    blocks(made).extend(copy_block(layer, index) for index, layer in enumerate(layers))
    config = made.config  # the copy's own
    config.num_hidden_layers = len(layers)
    if types := getattr(config, "layer_types", None):
        config.layer_types = types[:1] * len(layers)
    config.vocab_size = min(TOKENS, config.vocab_size)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding), "products of embeddings are no blocks"
    sizes = config.vocab_size, embedding.embedding_dim
    small: Any = randomised_(nn.Embedding(*sizes).to(embedding.weight))
    made.set_input_embeddings(small)
    if (head := model.get_output_embeddings()) is not None:
        smaller = nn.Linear(*reversed(sizes), bias=head.bias is not None).to(embedding.weight)
        smaller.weight = small.weight
        config.tie_word_embeddings = True
        made.set_output_embeddings(smaller)
    return made


def repeated(model: PreTrainedModel, block: nn.Module, copies: int) -> PreTrainedModel:
    """Return a model of copies of one block, each with weights of its own.

    Weights that are shared would be read from a processor's cache.
    """
    return stacked(model, [deepcopy(block) for _ in range(copies)])
