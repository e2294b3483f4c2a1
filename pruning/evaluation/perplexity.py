"""Token perplexity over non-overlapping windows, the quantity that pruning papers report."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pruning.data.batch import Batch
from pruning.data.bos import Encoder
from pruning.models.blockwise import advance, embed, few
from pruning.models.sites import blocks, final
from pruning.models.streamed import is_streamed
from pruning.system.progress import track

STATES = 2**28  # bytes of hidden states for which each block of a streamed model is read once


def joined(encode: Encoder, documents: list[str], enough: int | None) -> str:
    """Return documents as one text, a blank line between them, of at least `enough` tokens."""
    if enough is not None:  # no need to tokenize a whole corpus for a few windows
        length = 0
        for index, document in enumerate(documents):
            length += len(encode.bare(document))
            if length >= enough:
                documents = documents[: index + 1]
                break
    return "\n\n".join(documents)


def ends(encode: Encoder, text: str) -> list[int]:
    """Return where each token of a text ends, in characters; its encoder's head is not among them.

    ValueError where the tokenizer cannot tell.
    """
    tokenizer: Any = encode.tokenizer
    if not tokenizer.is_fast:
        raise ValueError(
            "suite.perplexity.characters needs a fast tokenizer, which knows where tokens end: "
            "give suite.perplexity.tokens, or another model"
        )
    pairs = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return [end for _, end in (pairs[1:] if encode.strip else pairs)]


def predicted_bytes(text: str, ends: list[int], window: int, head: int) -> int:
    """Count the bytes of the tokens that are predicted in windows, `head` of each not of the text.

    A character of several tokens at the edge of what is predicted counts as a whole or not at all.
    """
    width, begun = window - head, [0, *ends]
    first = 0 if head else 1  # token of a window that is predicted
    starts = range(0, len(ends) // width * width, width)
    return sum(len(text[begun[s + first] : begun[s + width]].encode()) for s in starts)


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
        for row, targets in zip(logits, chunk.to(logits.device), strict=True):
            for z, following in few(row[:-1], targets[1:]):
                losses = cross_entropy(z.float(), following, reduction="none")
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
            advance(states, index, block)
        for state in states:
            yield final(model, state.hidden.to(model.device))
