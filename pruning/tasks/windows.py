"""Long contexts, cut into overlapping windows of tokens that a model can read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pruning.data.batch import INPUTS, Row
from pruning.data.questions import Question

PART = 256  # questions that are tokenised at a time


@dataclass
class Window:
    """What is read at a time: a question and a part of its context."""

    question: int  # its number
    row: Row
    characters: Int[Tensor, "sequence 2"]  # of the context, for every token; 0, 0 outside of it

    def labelled(self, question: Question) -> Row:
        """Return the row with the first and last token of the answer.

        Both are 0, the token in front of all, where the window does not hold all of the answer, or
        where there is none.
        """
        first, last = self._place(question) if question.answers else (0, 0)
        places = {"start_positions": first, "end_positions": last}
        return self.row | {name: torch.tensor(place) for name, place in places.items()}

    def _place(self, question: Question) -> tuple[int, int]:
        start, end = question.start, question.start + len(question.answers[0])
        begins, ends = self.characters.T
        inside = ((begins < end) & (ends > start)).nonzero()[:, 0].tolist()
        if inside and begins[inside[0]] <= start and ends[inside[-1]] >= end:
            return inside[0], inside[-1]
        return 0, 0


def windows(
    questions: list[Question],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stride: int,
    field: str,
) -> Iterator[Window]:
    """Tokenise questions with their contexts; neighbouring windows share `stride` tokens.

    ValueError names `field` where a question leaves too little room for its context.
    """
    for start in range(0, len(questions), PART):
        part = questions[start : start + PART]
        try:
            encoded: Any = tokenizer(
                [question.text.strip() for question in part],
                [question.context for question in part],
                truncation="only_second",
                max_length=max_length,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
        except BaseException as error:
            if type(error).__name__ != "PanicException" and not isinstance(error, Exception):
                raise  # what the Rust side panics with is no Exception
            raise ValueError(
                f"{field}.max_length={max_length}: a question leaves no room for its context, of "
                f"which windows share {stride} tokens; raise it, or lower {field}.stride={stride}"
            ) from error
        names = [name for name in INPUTS if name in encoded]
        for index, number in enumerate(encoded["overflow_to_sample_mapping"]):
            row = {name: torch.tensor(encoded[name][index]) for name in names}
            characters = torch.tensor(encoded["offset_mapping"][index])
            second = [part == 1 for part in encoded.sequence_ids(index)]
            characters[~torch.tensor(second)] = 0
            yield Window(start + number, row, characters)
