"""What stands for a model that is not in memory while it is timed."""

import logging
from collections import defaultdict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.models.shrink import copy_sharing_weights
from pruning.models.sites import blocks
from pruning.models.streamed import is_streamed, resident_

log = logging.getLogger(__name__)

LEAST = 2**29  # bytes of weights that it reads before any twice: more than a processor's cache


@torch.no_grad()
def timed(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model to time: the model itself, or, of a streamed one, a model of its shapes.

    Its blocks share random weights, of as many blocks as no processor's cache holds: how long a
    product takes depends on shapes, and on where weights are read from.
    """
    if not is_streamed(model):
        return model
    made = copy_sharing_weights(model)
    layers, dtype = blocks(made), model.dtype
    largest = max(sum(p.numel() for p in block.parameters()) for block in layers) * dtype.itemsize
    kinds = min(len(layers), -(-LEAST // max(1, largest)))
    sizes: dict[tuple[int, str], int] = defaultdict(int)
    for index, block in enumerate(layers):
        for name, parameter in block.named_parameters():
            key = index % kinds, name
            sizes[key] = max(sizes[key], parameter.numel())
    shared: dict[tuple[int, str], Tensor] = {
        key: torch.empty(size, dtype=dtype, device=model.device).normal_(std=0.02)
        for key, size in sizes.items()
    }
    for index, block in enumerate(layers):
        weights = {
            name: shared[index % kinds, name][: parameter.numel()].view(parameter.shape)
            for name, parameter in block.named_parameters()
        }
        resident_(block, weights)
    log.info("timed on blocks of the same shapes that share the weights of %d", kinds)
    return made
