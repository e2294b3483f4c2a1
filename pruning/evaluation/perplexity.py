"""Token perplexity over non-overlapping windows, the quantity that pruning papers report."""

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from pruning.system.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", documents: list[str], enough: int | None
) -> Int[Tensor, " tokens"]:
    """Return the tokens of the documents joined by a blank line, about the first `enough` of them.

    The documents are one text: a BOS stands at its beginning if the tokenizer adds one, and
    nowhere else.
    """
    if enough is not None:  # no need to tokenize a whole corpus for a few windows
        length = 0
        for index, document in enumerate(documents):
            length += len(tokenizer(document, add_special_tokens=False, verbose=False).input_ids)
            if length >= enough:
                documents = documents[: index + 1]
                break
    text = "\n\n".join(documents)
    return tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]


@torch.no_grad()
def token_perplexity(
    model: "PreTrainedModel",
    tokens: Int[Tensor, " tokens"],
    window: int,
    batch: int,
) -> float:
    """Return exp of the mean negative log likelihood of the windows' tokens.

    Each window of `window` tokens is read on its own and its first token is not predicted; the
    tail shorter than a window is dropped. `batch` windows go through the model at a time; the
    losses are summed in float64. NaN and infinity are returned as they are.
    """
    rows = tokens[: len(tokens) // window * window].view(-1, window)
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
