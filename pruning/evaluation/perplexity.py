"""Token perplexity over non-overlapping windows, the quantity that pruning papers report."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from pruning.data.bos import Encoder
from pruning.system.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    model: "PreTrainedModel",
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
    for chunk in track(chunks, f"perplexity ({len(rows)} x {window})", total=len(chunks)):
        chunk = chunk.to(model.device)
        logits = model(input_ids=chunk, use_cache=False).logits
        for row, targets in zip(logits, chunk, strict=True):  # one float32 copy at a time
            losses = cross_entropy(row[:-1].float(), targets[1:], reduction="none")
            total += losses.double().sum().item()
    mean = total / (rows.shape[0] * (window - 1))
    return math.exp(mean) if mean < 700 else math.inf
