"""Rows that hold text which is evaluated on: recovery leaves them out, calibration counts them."""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from pruning.data.batch import Row

log = logging.getLogger(__name__)

Tokens = Int64[np.ndarray, " tokens"]
LENGTH = 32  # tokens in a row that two texts do not share by chance
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no token is lost modulo 2^64
MOST = 0.1  # share of rows beyond which the text itself must be the wrong one


def disjoint(
    rows: Sequence[Row],
    judged: Sequence[Sequence[int]],
    special: Sequence[int],
    field: str,
    most: float = MOST,
) -> list[Row]:
    """Return the rows that hold nothing of the texts that are judged on.

    ValueError, naming `field`, where those that do are more than the share `most`, or all of them.
    """
    held = holding(rows, judged, special)
    left = [row for row, holds in zip(rows, held, strict=True) if not holds]
    out = sum(held)
    if out > most * len(rows) or not left:
        raise ValueError(
            f"{field}: {out} of {len(rows)} rows hold text that the suite evaluates on: train on "
            "other text, or evaluate on other text"
        )
    if out:
        log.warning("%d of %d rows hold text of the suite and are left out", out, len(rows))
    return left


def holding(
    rows: Sequence[Row], judged: Sequence[Sequence[int]], special: Sequence[int]
) -> list[bool]:
    """Say of every row whether it holds some of the texts that are judged on.

    That is if it has one of a text's consecutive runs of `LENGTH` tokens (so any `2 LENGTH - 1` in
    common are found), or if it is all of a text shorter than that; `special` tokens are left out of
    both.
    """

    def plain(ids: Sequence[int]) -> Tokens:
        tokens = np.asarray(ids, np.int64)
        return tokens[~np.isin(tokens, special)]

    texts = [text for text in map(plain, judged) if len(text)]
    runs = [windows(text)[::LENGTH] for text in texts if len(text) >= LENGTH]
    seen = np.unique(np.concatenate(runs)) if runs else np.zeros(0, np.uint64)
    short = {text.tobytes() for text in texts if len(text) < LENGTH}
    tokens = (plain(row["input_ids"].tolist()) for row in rows)
    return [ids.tobytes() in short or bool(np.isin(windows(ids), seen).any()) for ids in tokens]


def windows(ids: Tokens) -> UInt64[np.ndarray, " windows"]:
    """Return a hash of each run of `LENGTH` tokens: sum_j (id_j + 1) FACTOR^(LENGTH-1-j)."""
    count = max(0, len(ids) - LENGTH + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(LENGTH if count else 0):
        hashes = hashes * FACTOR + ids[offset : offset + count].astype(np.uint64) + np.uint64(1)
    return hashes
