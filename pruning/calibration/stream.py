"""The residual stream of a model, block by block: one loop for moments and for sensitivities."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.models.sites import architecture, blocks, final

Hidden = Float[Tensor, "batch sequence hidden"]


@dataclass
class Batch:
    """Token rows with 1 in `mask` where a token is real and 0 where it is padding."""

    ids: Int[Tensor, "batch sequence"]
    mask: Int[Tensor, "batch sequence"]
    held_out: bool = False

    @property
    def tokens(self) -> int:
        """Count the real tokens."""
        return int(self.mask.sum())

    def digest(self) -> str:
        """Hash the tokens, the mask and the use."""
        content = self.ids.numpy().tobytes() + self.mask.numpy().tobytes()
        return hashlib.sha256(content + bytes([self.held_out])).hexdigest()[:16]

    def split(self, size: int) -> list["Batch"]:
        """Cut into batches of at most `size` rows."""
        pairs = zip(self.ids.split(size), self.mask.split(size), strict=True)
        return [Batch(ids, mask, self.held_out) for ids, mask in pairs]


def _shuffled(documents: list[str], seed: int) -> Iterator[str]:
    generator = torch.Generator().manual_seed(seed)
    return (documents[i] for i in torch.randperm(len(documents), generator=generator).tolist())


def pack(
    tokenizer: PreTrainedTokenizerBase, documents: list[str], sequence: int, tokens: int, seed: int
) -> Batch:
    """Join shuffled documents by blank lines and cut them into at least `tokens` / `sequence` rows.

    One long document (a whole book in a file) is cut at random places instead of being shuffled.
    """
    rows = -(-tokens // sequence)
    ids: list[int] = []
    for text in _shuffled(documents, seed):
        ids += tokenizer(text + "\n\n", verbose=False).input_ids
        if len(documents) > 1 and len(ids) >= rows * sequence:
            break
    packed = torch.tensor(ids[: len(ids) // sequence * sequence]).view(-1, sequence)
    if len(documents) == 1:
        packed = packed[torch.randperm(len(packed), generator=torch.Generator().manual_seed(seed))]
    packed = packed[:rows]
    return Batch(packed, torch.ones_like(packed))


def pad(
    tokenizer: PreTrainedTokenizerBase, documents: list[str], sequence: int, tokens: int, seed: int
) -> Batch:
    """Put one shuffled document in a row, cut at `sequence` and padded on the right."""
    rows, count = [], 0
    for text in _shuffled(documents, seed):
        rows.append(torch.tensor(tokenizer(text, verbose=False).input_ids[:sequence]))
        count += len(rows[-1])
        if count >= tokens:
            break
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return Batch(ids, mask)


class _Recorder(nn.Module):
    """Stands in for a block: notes what it is called with and passes the hidden states on."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None
        self.call: tuple[tuple, dict] = ((), {})

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        self.hidden, self.call = hidden_states, (args, kwargs)
        return hidden_states


@dataclass
class State:
    """Where one batch is on its way through the blocks."""

    batch: Batch
    hidden: Hidden
    calls: list[tuple[tuple, dict]]  # what the model passes to each block beside the hidden states
    weights: Tensor | None = None  # of its tokens in the block in front of it, once they are known

    def advance(self, index: int, block: nn.Module) -> Hidden:
        """Replace the hidden states by those behind `block` and return them."""
        self.hidden, self.weights = behind(block, self.hidden, self.calls[index]), None
        return self.hidden


def behind(block: nn.Module, hidden: Hidden, call: tuple[tuple, dict]) -> Hidden:
    """Return the hidden states behind `block`."""
    args, kwargs = call
    out = block(hidden, *args, **kwargs)
    return out[0] if isinstance(out, tuple) else out


class _Player(nn.Module):
    """Stands in for a block: whatever comes, these hidden states leave."""

    def __init__(self, hidden: Tensor):
        super().__init__()
        self.hidden = hidden

    def forward(self, *args, **kwargs) -> Tensor:
        return self.hidden


@contextmanager
def _replaced(layers: nn.ModuleList, stand_ins: Sequence[nn.Module]) -> Iterator[None]:
    own = list(layers)
    try:
        for index, stand_in in enumerate(stand_ins):
            layers[index] = stand_in
        yield
    finally:
        for index, block in enumerate(own):
            layers[index] = block


@contextmanager
def bypassed(model: PreTrainedModel) -> Iterator[None]:
    """Let the hidden states pass by every block, as if there were none."""
    layers = blocks(model)
    with _replaced(layers, [_Recorder() for _ in layers]):
        yield


@torch.no_grad()
def enter(model: PreTrainedModel, batch: Batch) -> State:
    """Run what comes before the blocks: embeddings, positions, masks."""
    layers = blocks(model)
    recorders = [_Recorder() for _ in layers]
    with _replaced(layers, recorders):
        options = {} if architecture(model).encoder else {"use_cache": False}
        model.base_model(
            input_ids=batch.ids.to(model.device),
            attention_mask=batch.mask.to(model.device),
            **options,
        )
    hidden = recorders[0].hidden
    assert hidden is not None
    return State(batch, hidden, [recorder.call for recorder in recorders])


@torch.no_grad()
def leave(
    model: PreTrainedModel, batch: Batch, hidden: Hidden
) -> Float[Tensor, "predictions classes"]:
    """Run what comes behind the blocks; return logits: of every real token, or of every row."""
    if not architecture(model).encoder:
        return final(model, hidden[batch.mask.bool().to(hidden.device)])
    layers = blocks(model)
    with _replaced(layers, [_Player(hidden) for _ in layers]):
        ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
        return model(input_ids=ids, attention_mask=mask).logits
