"""Text that is evaluated on is never trained on: rows that hold some of it are left out."""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from pruning.calibration.batch import Row

log = logging.getLogger(__name__)

Tokens = Int64[np.ndarray, " tokens"]
LENGTH = 32  # tokens in a row that two texts do not share by chance
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no token is lost modulo 2^64
MOST = 0.1  # share of rows beyond which the text itself must be the wrong one


def disjoint(
    rows: Sequence[Row], judged: Sequence[Sequence[int]], special: Sequence[int], field: str
) -> list[Row]:
    """Return the rows that hold nothing of the texts that are judged on.

    A row holds some of a text if it has one of the text's consecutive runs of `LENGTH` tokens (so
    any `2 LENGTH - 1` in common are found), or if, without special tokens, it is all of a text
    shorter than that. ValueError, naming `field`, where that is more than a tenth of the rows.
    """
    texts = [np.asarray(text, np.int64) for text in judged if len(text)]
    runs = [windows(text)[::LENGTH] for text in texts if len(text) >= LENGTH]
    seen = np.unique(np.concatenate(runs)) if runs else np.zeros(0, np.uint64)
    short = {text.tobytes() for text in texts if len(text) < LENGTH}
    left = []
    for row in rows:
        ids = row["input_ids"].numpy().astype(np.int64)
        plain = ids[~np.isin(ids, special)]
        if plain.tobytes() in short or np.isin(windows(ids), seen).any():
            continue
        left.append(row)
    out = len(rows) - len(left)
    if out > MOST * len(rows):
        raise ValueError(
            f"{field}: {out} of {len(rows)} rows hold text that the suite evaluates on: train on "
            "other text, or evaluate on other text"
        )
    if out:
        log.warning("%d of %d rows hold text of the suite and are left out", out, len(rows))
    return left


def windows(ids: Tokens) -> UInt64[np.ndarray, " windows"]:
    """Return a hash of each run of `LENGTH` tokens: sum_j (id_j + 1) FACTOR^(LENGTH-1-j)."""
    count = max(0, len(ids) - LENGTH + 1)
    found = np.zeros(count, np.uint64)
    for offset in range(LENGTH if count else 0):
        found = found * FACTOR + ids[offset : offset + count].astype(np.uint64) + np.uint64(1)
    return found
