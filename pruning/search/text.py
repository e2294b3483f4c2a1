"""Which text candidates are measured on, and where in it."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from pruning.data.batch import Batch

log = logging.getLogger(__name__)


def evaluation_text(
    batches: list[Batch], tokens: int, sequences: Sequence[int | None], whole: bool = False
) -> list[Batch]:
    """Take `tokens` (or a little more) of the held-out rows, shared equally among row lengths.

    `sequences` are the lengths that rows are cut to; None leaves them as they are. What a model
    takes from far away shows in long rows alone, and how it begins weighs most in short ones. With
    `whole`, for a classifier, it is `tokens` rows, uncut: what a token is to a decoder, a row is to
    a classifier.
    """
    held_out = [batch for batch in batches if batch.held_out]
    width = max((batch.ids.shape[1] for batch in held_out), default=0)
    longer = [length for length in sequences if length is not None and length > width > 0]
    if longer and not whole:
        log.info(
            "search.sequence_length: held-out rows have at most %d tokens, %d are asked for; for "
            "longer rows raise calibration.sequence_length",
            width,
            max(longer),
        )
    lengths = {width if whole or length is None else min(length, width) for length in sequences}
    share = -(-tokens // len(lengths))
    return [
        batch
        for length in sorted(lengths, reverse=True)
        for batch in _beginnings(held_out, share, length, whole)
    ]


def _beginnings(held_out: list[Batch], tokens: int, sequence: int, whole: bool) -> list[Batch]:
    """Take `tokens` (or a little more) of rows, `sequence` of each at a time.

    As many rows as possible take part: one passage alone says too little of a model. Rows of one
    batch are kept together, and where rows have a head (a beginning-of-sequence token) so has every
    piece of them, as one of its `sequence` tokens.
    """
    width = max((batch.ids.shape[1] for batch in held_out), default=0)
    cut: list[Batch] = []
    taken = 0
    head = max((batch.head for batch in held_out), default=0)
    step = max(1, sequence - head)
    for start in range(head, width, step):
        columns = slice(start, start + step)
        for batch in held_out:
            if taken >= tokens:
                return cut
            real = batch.mask[:, columns].sum(1)
            count = (real > 0).long() if whole else real + head * (real > 0)
            rows = (real > 0) & (taken + count.cumsum(0) - count < tokens)
            if rows.any():
                cut.append(batch.take(rows, columns))
                taken += int(count[rows].sum())
    return cut


def with_repeats(batches: list[Batch], share: float) -> list[Batch]:
    """Let a share of the rows, spread evenly, say their first half again in the second.

    What a model takes from its context is then most of what it knows of the second half, as of text
    in which names come again (repeated tokens are how copying heads are found: Olsson et al., 2022,
    arXiv:2209.11895). Heads of rows stay; padding too.
    """
    repeated, count = list[Batch](), 0
    for batch in batches:
        ids = batch.ids.clone()
        for row, real in enumerate(batch.mask.sum(1)):
            count += 1
            if int(count * share) > int((count - 1) * share):
                half = (int(real) - batch.head) // 2
                first = slice(batch.head, batch.head + half)
                ids[row, first.stop : first.stop + half] = ids[row, first]
        repeated.append(replace(batch, ids=ids))
    return repeated


def draw_predictions(batches: list[Batch], most: int | None) -> list[Batch]:
    """Return the batches with a mask of at most `most` tokens, each batch with its share of them.

    Null takes all. The head and the comparison of distributions cost as much as many blocks, and
    tokens beside one another say much the same.
    """
    there = sum(batch.tokens for batch in batches)
    if most is None or most >= there:
        return batches
    generator = torch.Generator().manual_seed(0)
    drawn: list[Batch] = []
    for batch in batches:
        real = batch.mask.flatten().nonzero().flatten()
        count = max(1, round(most * len(real) / there))
        chosen = real[torch.randperm(len(real), generator=generator)[:count]]
        mask = torch.zeros_like(batch.mask).flatten()
        mask[chosen] = 1
        drawn.append(replace(batch, mask=mask.view_as(batch.mask)))
    return drawn
