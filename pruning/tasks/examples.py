"""Rows of a task as tokens and labels."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pruning.data.batch import INPUTS, Row
from pruning.data.labelled import Labelled


def examples(
    labelled: Labelled,
    rows: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    classes: int,
) -> list[Row]:
    """Tokenise texts, or pairs, cut at `max_length` tokens; labels are floats where `classes` is 1.

    ValueError for a label that is no class.
    """
    first, *second = ([str(row[column]) for row in rows] for column in labelled.columns)
    cut = {"truncation": max_length is not None, "max_length": max_length}
    encoded: Any = tokenizer(first, second[0] if second else None, **cut)
    names = [name for name in INPUTS if name in encoded]
    made = []
    for index, row in enumerate(rows):
        label = row[labelled.label]
        if classes > 1 and label not in range(classes):
            raise ValueError(
                f"task.train.label={labelled.label!r}: {label!r} is not one of {classes} classes, "
                "0 and up: correct task.classes, or leave out rows without a label"
            )
        value = torch.tensor(float(label) if classes == 1 else int(label))
        made.append({name: torch.tensor(encoded[name][index]) for name in names})
        made[-1]["labels"] = value
    return made
