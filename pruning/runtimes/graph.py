"""A model as one graph, which engines compile: `torch.export` of it, and what its inputs are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from pruning.models.modeling_pruned import block_shape, head_size
from pruning.models.sites import architecture, blocks, positions
from pruning.runtimes.calls import random_tokens
from pruning.runtimes.session import Arrays, Session, quietly
from pruning.runtimes.workload import Phase, Workload


class DecoderGraph(nn.Module):
    """A decoder behind a KV cache: the logits at some positions, and the cache with the new tokens.

    `past` has keys and values, [batch groups tokens head], of every block that has attention.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self.layers = model, attending(model)

    def forward(
        self, input_ids: Tensor, positions: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return logits [batch positions vocabulary], then keys and values as `past` has them."""
        cache = DynamicCache()
        layers: Any = [DynamicLayer() for _ in blocks(self.model)]
        cache.layers = layers
        for place, index in enumerate(self.layers):
            layer = layers[index]
            layer.keys, layer.values = past[2 * place], past[2 * place + 1]
            layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
            layer.is_initialized = True
        options = {"use_cache": True, "logits_to_keep": positions}
        logits = self.model(input_ids=input_ids, past_key_values=cache, **options).logits
        present = [
            getattr(cache.layers[i], name) for i in self.layers for name in ("keys", "values")
        ]
        return logits, *present


class EncoderGraph(nn.Module):
    """An encoder with its head."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of the classes; or those of starts and of ends."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).to_tuple()


def attending(model: PreTrainedModel) -> list[int]:
    """List the blocks that have attention, and so a place in a KV cache."""
    a = architecture(model)
    return [i for i, block in enumerate(blocks(model)) if block_shape(block, a)[0]]


@dataclass(frozen=True)
class Graph:
    """An exported model; batch, tokens and what is cached may be of any size."""

    program: ExportedProgram
    inputs: list[str]
    outputs: list[str]


@torch.no_grad()
def exported(model: PreTrainedModel) -> Graph:
    """Export a model, dense or pruned; its weights are shared with the graph."""
    ids, batch = random_tokens(model, 2, 7), Dim("batch")
    shapes: dict[str, Any]
    values: dict[str, Any]
    if architecture(model).encoder:
        module, names = EncoderGraph(model), ["input_ids", "attention_mask"]
        values = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        shapes = {name: {0: batch, 1: Dim("sequence", max=positions(model))} for name in names}
        outputs = [*model(**values)]
    else:
        module, past = DecoderGraph(model), cached(model, 2, 5)
        names = ["input_ids", "positions", *past]
        values = {"input_ids": ids, "positions": torch.arange(3), "past": [*past.values()]}
        shapes = {"input_ids": {0: batch, 1: Dim("sequence")}, "positions": {0: Dim("positions")}}
        shapes["past"] = [{0: batch, 2: Dim("past")}] * len(past)
        outputs = ["logits", *(name.replace("past", "present") for name in past)]
    with quietly():
        program = torch.export.export(
            module.eval(), (), values, dynamic_shapes=shapes, strict=False
        )
    return Graph(program, names, outputs)


def cached(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, Tensor]:
    """Return random keys and values of so many tokens, for every block that has attention."""
    a, past = architecture(model), {}
    for index in attending(model):
        block = blocks(model)[index]
        size = batch, block_shape(block, a)[0], tokens, head_size(block, a)
        for name in ("key", "value"):
            past[f"past.{index}.{name}"] = torch.randn(size).to(model.device)
    return past


def feed(model: PreTrainedModel, work: Workload) -> Arrays:
    """Return the inputs of one call: a prompt up to its last token's logits, or one token more."""
    decode = work.phase is Phase.decode
    ids = random_tokens(model, work.batch, 1 if decode else work.sequence)
    last = torch.tensor([ids.shape[1] - 1])
    return inputs(model, ids, last, work.sequence if decode else 0)


def answer(
    model: PreTrainedModel, session: Session, ids: Tensor, mask: Tensor | None
) -> dict[str, Tensor]:
    """Return the logits of all tokens, or what the head of an encoder gives."""
    outputs = session(inputs(model, ids, torch.arange(ids.shape[1]), mask=mask))
    return {
        name: torch.from_numpy(np.array(value))
        for name, value in zip(session.outputs, outputs, strict=True)
        if name.endswith("logits")
    }


def inputs(
    model: PreTrainedModel, ids: Tensor, where: Tensor, past: int = 0, mask: Tensor | None = None
) -> Arrays:
    """Return what a graph reads: tokens behind `past` random ones, and `where` logits are wanted.

    An encoder reads tokens and a mask, by default of ones.
    """
    if architecture(model).encoder:
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
    else:
        given = {"input_ids": ids, "positions": where, **cached(model, len(ids), past)}
    return {name: tensor.numpy() for name, tensor in given.items()}
