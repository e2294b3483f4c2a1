"""Models that a GGUF file holds, of every kind."""

import torch
from transformers import PreTrainedModel

from pruning.models.modeling_pruned import add_output_biases_, resize_block_
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import architecture, blocks
from tests.helpers.allocations import mixed

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def pruned(model: PreTrainedModel) -> PreTrainedModel:
    """Return it with uneven blocks: no attention in block 1, no FFN in block 2."""
    return shrink_(copy_sharing_weights(model), mixed(model))


def without(model: PreTrainedModel, *gone: tuple[int, int, int, int]) -> PreTrainedModel:
    """Cut blocks without choosing what goes: (block, KV groups, heads of each, FFN width)."""
    for index, *sizes in gone:
        resize_block_(blocks(model)[index], architecture(model), *sizes)
    return model


def with_output_biases(model: PreTrainedModel) -> PreTrainedModel:
    """Give it random biases that its family has not."""
    add_output_biases_(blocks(model), architecture(model))
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.bias", "down_proj.bias")):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def untied(model: PreTrainedModel) -> PreTrainedModel:
    """Give it a head of its own."""
    embedding = model.get_input_embeddings().weight
    head = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(3))
    model.get_output_embeddings().weight = torch.nn.Parameter(0.15 * head)
    model.config.tie_word_embeddings = False
    return model
