"""Token perplexity over non-overlapping windows, the quantity that pruning papers report."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pruning.data.batch import Batch
from pruning.data.bos import Encoder
from pruning.models.blockwise import embed
from pruning.models.sites import blocks, final
from pruning.models.streamed import is_streamed, opened
from pruning.system.progress import track

STATES = 2**28  # bytes of hidden states for which each block of a streamed model is read once


def tokenize(encode: Encoder, documents: list[str], enough: int | None) -> Int[Tensor, " tokens"]:
    """Return the tokens of the documents joined by a blank line, about the first `enough` of them.

    The documents are one text; the encoder's head is not among its tokens.
    """
    if enough is not None:  # no need to tokenize a whole corpus for a few windows
        length = 0
        for index, document in enumerate(documents):
            length += len(encode.bare(document))
            if length >= enough:
                documents = documents[: index + 1]
                break
    return torch.tensor(encode("\n\n".join(documents)), dtype=torch.long)


def cut(
    tokens: Int[Tensor, " tokens"], window: int, head: Sequence[int] = ()
) -> Int[Tensor, "windows window"]:
    """Return the full windows of a text, each beginning with `head`."""
    width = window - len(head)
    rows = tokens[: len(tokens) // width * width].view(-1, width)
    return torch.cat([torch.tensor(head, dtype=rows.dtype).expand(len(rows), -1), rows], 1)


@torch.no_grad()
def token_perplexity(
    model: PreTrainedModel,
    tokens: Int[Tensor, " tokens"],
    window: int,
    batch: int,
    head: Sequence[int] = (),
) -> float:
    """Return exp of the mean negative log likelihood of the windows' tokens.

    Each window of `window` tokens, the first of them `head`, is read on its own, and its first
    token is not predicted; the tail shorter than a window is dropped. `batch` windows go through
    the model at a time; the losses are summed in float64. NaN and infinity are returned as they
    are.
    """
    rows = cut(tokens, window, head)
    assert len(rows), f"{len(tokens)} tokens do not fill one window of {window}"
    total = 0.0
    chunks = rows.split(batch)
    answers = zip(chunks, _logits(model, chunks), strict=True)
    for chunk, logits in track(answers, f"perplexity ({len(rows)} x {window})", total=len(chunks)):
        # one float32 copy at a time
        for row, targets in zip(logits, chunk.to(logits.device), strict=True):
            losses = cross_entropy(row[:-1].float(), targets[1:], reduction="none")
            total += losses.double().sum().item()
    mean = total / (rows.shape[0] * (window - 1))
    return math.exp(mean) if mean < 700 else math.inf


def _logits(
    model: PreTrainedModel, chunks: Sequence[Int[Tensor, "_ window"]]
) -> Iterator[Float[Tensor, "_ window vocabulary"]]:
    """Yield the logits of every chunk; a streamed block is read once for many of them."""
    if not (isinstance(model, PreTrainedModel) and is_streamed(model)):
        for chunk in chunks:
            yield model(input_ids=chunk.to(model.device), use_cache=False).logits
        return
    size = chunks[0].numel() * model.config.hidden_size * model.dtype.itemsize
    count = max(1, STATES // size)
    for first in range(0, len(chunks), count):
        some = chunks[first : first + count]
        states = [embed(model, Batch(chunk, torch.ones_like(chunk))) for chunk in some]
        for index, block in enumerate(blocks(model)):
            with opened(block):
                for state in states:
                    state.advance(index, block)
        for state in states:
            yield final(model, state.hidden.to(model.device))
