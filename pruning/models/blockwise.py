"""The residual stream of a model, block by block: one loop for moments and for sensitivities."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.data.batch import Batch
from pruning.models.sites import Kind, architecture, blocks, final
from pruning.models.streamed import is_streamed, opened
from pruning.system.precision import computing

Hidden = Float[Tensor, "batch sequence hidden"]
NEVER = -1e4  # the logit of a place that cannot be
SOME = 2**20  # numbers that are worked on at once


class _StandIn(nn.Module):
    """Stands in for a block; hidden states leave it as they leave the block, alone or in a pair."""

    def __init__(self, paired: bool):
        super().__init__()
        self.paired = paired

    def out(self, hidden: Tensor) -> Tensor | tuple[Tensor, None]:
        return (hidden, None) if self.paired else hidden


class _Recorder(_StandIn):
    """Notes what a block is called with and passes the hidden states on."""

    def __init__(self, paired: bool):
        super().__init__(paired)
        self.hidden: Tensor | None = None
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Any:
        self.hidden, self.call = hidden_states, (args, kwargs)
        return self.out(hidden_states)


@dataclass
class State:
    """Where one batch is on its way through the blocks."""

    batch: Batch
    hidden: Hidden
    calls: list[
        tuple[tuple[Any, ...], dict[str, Any]]
    ]  # what the model passes to each block beside the hidden states
    weights: dict[Kind, Tensor] | None = None  # of its tokens in the next block, once known
    in_bfloat16: bool = False  # the products of blocks
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of the blocks

    def run(self, index: int, block: nn.Module, hidden: Hidden | None = None) -> Hidden:
        """Return what `block` makes of the hidden states, which stay, or of other ones."""
        given = self.hidden if hidden is None else hidden
        with computing(self.in_bfloat16, self.device):
            return run_block(block, given.to(self.device), self.calls[index]).to(given.device)

    def advance(self, index: int, block: nn.Module) -> Hidden:
        """Replace the hidden states by those behind `block` and return them."""
        self.hidden, self.weights = self.run(index, block), None
        return self.hidden


def run_block(
    block: nn.Module, hidden: Hidden, call: tuple[tuple[Any, ...], dict[str, Any]]
) -> Hidden:
    """Return the hidden states behind `block`."""
    args, kwargs = call
    out = block(hidden, *args, **kwargs)
    return out[0] if isinstance(out, tuple) else out


class _Player(_StandIn):
    """Whatever comes, these hidden states leave."""

    def __init__(self, paired: bool, hidden: Tensor):
        super().__init__(paired)
        self.hidden = hidden

    def forward(self, *args, **kwargs) -> Any:
        return self.out(self.hidden)


@contextmanager
def _replaced(layers: nn.ModuleList, stand_ins: Sequence[nn.Module]) -> Iterator[None]:
    own = list(layers)
    try:
        for index, stand_in in enumerate(stand_ins):
            if (kind := getattr(own[index], "attention_type", None)) is not None:
                stand_in.attention_type = kind  # models choose masks by it
            layers[index] = stand_in
        yield
    finally:
        for index, block in enumerate(own):
            layers[index] = block


@torch.no_grad()
def record(
    model: PreTrainedModel, **inputs: Any
) -> tuple[Hidden, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Run what comes before the blocks: embeddings, positions, masks.

    Return the hidden states, and what the model passes to each block beside them.
    """
    layers = blocks(model)
    recorders = [_Recorder(architecture(model).paired) for _ in layers]
    with _replaced(layers, recorders):
        model.base_model(**inputs)
    hidden = recorders[0].hidden
    assert hidden is not None
    return hidden, [recorder.call for recorder in recorders]


@torch.no_grad()
def advance(states: Iterable[State], index: int, block: nn.Module) -> None:
    """Take states behind block `index`, which is opened once for all."""
    with opened(block):
        for state in states:
            state.advance(index, block)


def embed(model: PreTrainedModel, batch: Batch, in_bfloat16: bool = False) -> State:
    """Bring a batch in front of the first block."""
    options = {} if architecture(model).encoder else {"use_cache": False}
    with computing(in_bfloat16, model.device):
        hidden, calls = record(model, **batch.inputs(model.device), **options)
    if is_streamed(model):  # what does not fit there has its states on the host
        hidden = hidden.cpu()
    return State(batch, hidden, calls, None, in_bfloat16, model.device)


def predict(
    model: PreTrainedModel, batch: Batch, hidden: Hidden
) -> Float[Tensor, "predictions classes"]:
    """Run what comes behind the blocks; return its predictions."""
    a, layers = architecture(model), blocks(model)
    hidden = hidden.to(model.device)
    if not a.encoder:
        return final(model, hidden[batch.mask.bool().to(hidden.device)])
    with _replaced(layers, [_Player(a.paired, hidden) for _ in layers]):
        out = model(**batch.inputs(model.device))
    return predictions(out, batch.mask.to(hidden.device))


def predictions(
    outputs: Any, mask: Int[Tensor, "batch sequence"]
) -> Float[Tensor, "predictions classes"]:
    """Return the logits of what a model gave: of every real token, or of every row.

    For a reader of contexts a row has two predictions, the first and the last token of the answer,
    and its tokens are the classes.
    """
    if "logits" in outputs:
        logits = outputs.logits
        return logits[mask.bool()] if logits.ndim == 3 else logits
    places = torch.cat([outputs.start_logits, outputs.end_logits])
    return places.masked_fill(mask.eq(0).repeat(2, 1), NEVER)


def few(
    predictions: Float[Tensor, "predictions classes"], *others: Shaped[Tensor, "predictions ..."]
) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of a few rows each, so that what is made of them stays in the caches."""
    count = max(1, SOME // predictions.shape[1])
    return zip(*(rows.split(count) for rows in (predictions, *others)), strict=True)
