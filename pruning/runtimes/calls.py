"""The phases of inference as calls: of whole models, and of single blocks as they run in one."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from pruning.models.blockwise import record, run_block
from pruning.models.modeling_pruned import block_shape
from pruning.models.sites import architecture
from pruning.runtimes.runtime import Call
from pruning.runtimes.workload import Phase, Workload

Build = Callable[[FunctionType], Call]  # a call of these shapes


class FrozenCache(DynamicCache):
    """A KV cache that forgets every token that is added, so that all calls meet the same one."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Return the cached tokens with the new ones, as a growing cache does."""
        layer: Any = self.layers[layer_idx]
        pairs = ((layer.keys, key_states), (layer.values, value_states))
        keys, values = (torch.cat(pair, dim=-2) for pair in pairs)
        return keys, values

    def for_groups(self, groups: int, index: int = 0) -> "FrozenCache":
        """Return a cache of one layer alone, with so many KV heads."""
        layer: Any = self.layers[index]
        made = FrozenCache()
        if groups:
            keys, values = (
                tensor[:, :groups].contiguous() for tensor in (layer.keys, layer.values)
            )
            DynamicCache.update(made, keys, values, index)
        return made


def random_tokens(
    model: PreTrainedModel, batch: int, sequence: int
) -> Int[Tensor, "batch sequence"]:
    """Draw tokens; what they are does not matter to the time."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, sequence), generator=generator)
    return ids.to(model.device)


def filled(model: PreTrainedModel, work: Workload) -> FrozenCache:
    """Let a model read what is in the KV cache while it decodes."""
    ids = random_tokens(model, work.batch, work.sequence)
    cache = FrozenCache()
    cache.layers = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values.layers
    return cache


def plain(call: FunctionType) -> Call:
    """Return a call as it is."""
    return call


@torch.no_grad()
def end_to_end(model: PreTrainedModel, work: Workload, build: Build = plain) -> Call:
    """Return a call of a whole model: it ends with logits, of a prompt's last token only."""
    if work.phase is Phase.decode:
        last, cache = random_tokens(model, work.batch, 1), filled(model, work)
        return build(lambda: model(input_ids=last, past_key_values=cache, use_cache=True))
    ids = random_tokens(model, work.batch, work.sequence)
    if work.phase is Phase.encode:
        return build(lambda: model(input_ids=ids))
    if work.phase is Phase.prefill:
        return build(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1))
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "max_new_tokens": work.tokens,
        "min_new_tokens": work.tokens,
        "pad_token_id": 0,
    }
    return lambda: model.generate(ids, **options)  # type: ignore[operator]


@torch.no_grad()
def of_block(model: PreTrainedModel, work: Workload, build: Build = plain) -> Callable[..., Call]:
    """Return what makes a call of a shrunken copy of a block, by its index or the first.

    Not for generate.
    """
    cache = None
    if work.phase is Phase.decode:
        cache = filled(model, work)
        ids = random_tokens(model, work.batch, 1)
        hidden, calls = record(model, input_ids=ids, past_key_values=cache, use_cache=True)
    else:
        ids = random_tokens(model, work.batch, work.sequence)
        options = {} if work.phase is Phase.encode else {"use_cache": False}
        hidden, calls = record(model, input_ids=ids, **options)

    def call(block: nn.Module, index: int = 0) -> Call:
        args, kwargs = mine = calls[index]
        if cache is not None:
            own = cache.for_groups(block_shape(block, architecture(model))[0], index)
            mine = (
                tuple(own if value is cache else value for value in args),
                {key: own if value is cache else value for key, value in kwargs.items()},
            )
        return build(lambda: run_block(block, hidden, mine))

    return call
