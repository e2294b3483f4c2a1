"""Questions about contexts that hold their answers, as in SQuAD."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

from pruning.data.rows import Rows
from pruning.system.cache import Cache


@dataclass
class Question:
    """A question, its context, and the answers that count, each found in the context."""

    text: str
    context: str
    answers: list[str]  # none: the context does not say
    start: int  # character of the context where the first answer begins; -1 without one


@dataclass
class Questions(Rows):
    """Rows of a question, a context and answers.

    Answers are as in SQuAD, `{"text": [...], "answer_start": [...]}` or a list of such with one
    each; or one text or several, of which the first is then looked for in the context. With
    `unanswerable` there may be none, as in SQuAD 2.0.
    """

    question: str = "question"  # column of the question
    context: str = "context"  # column of the text that answers it
    answers: str = "answers"  # column of the answers that count
    pattern: str | None = None  # regular expression that splits `context` into both, by group names
    unanswerable: bool = False  # some questions have no answer

    def read(self, cache: Cache, field: str, limit: int | None = None) -> list[Question]:
        """Return the questions; ValueError where the file, a column or an answer is not there."""
        names = ["context", "answers"] + (["question"] if self.pattern is None else [])
        needed = [(name, getattr(self, name)) for name in names]
        return list(islice(self._questions(cache, field, needed), limit))

    def _questions(
        self, cache: Cache, field: str, needed: list[tuple[str, str]]
    ) -> Iterator[Question]:
        for row in self.rows(cache, field, needed):
            text, context = row.get(self.question, ""), row[self.context]
            if self.pattern is not None:
                text, context = self._split(context, field)
            if not isinstance(text, str) or not isinstance(context, str):
                raise ValueError(
                    f"{field}.question={self.question!r} and {field}.context={self.context!r} must "
                    f"name columns of texts: a row has {text!r} and {str(context)[:40]!r}"
                )
            answers, start = _answers(row[self.answers], context)
            if start < 0 and (answers or not self.unanswerable):
                raise ValueError(
                    f"{field}.answers={self.answers!r}: the context of {text!r} holds no answer "
                    f"{answers[:1]}; correct or leave out such questions, or with "
                    f"{field}.unanswerable=true let those without any stay (SQuAD 2.0 has some)"
                )
            yield Question(text, context, answers, start)

    def _split(self, both: str, field: str) -> tuple[str, str]:
        assert self.pattern is not None
        found = re.fullmatch(self.pattern, both, re.DOTALL)
        if found is None:
            raise ValueError(
                f"{field}.pattern={self.pattern!r} does not fit {both[:80]!r}: correct it, or "
                f"leave it out where {field}.question is a column"
            )
        return found["question"], found["context"]


def _answers(given: Any, context: str) -> tuple[list[str], int]:
    """Return the texts, and where the first begins; -1 where it does not."""
    if given is None or isinstance(given, str):
        given = [] if given is None else [given]
    elif not isinstance(given, dict) and all(isinstance(answer, dict) for answer in given):
        given = {key: [of[key] for of in given] for key in ("text", "answer_start")}
    if isinstance(given, dict):
        starts = chain(given["answer_start"], repeat(-1))  # of the first text at least
        pairs = zip(given["text"], starts, strict=False)
    else:
        pairs = ((text, context.find(str(text))) for text in given)
    found = [(str(text), int(start)) for text, start in pairs if str(text)]
    if not found:
        return [], -1
    first, start = found[0]
    there = start >= 0 and context.startswith(first, start)
    return [text for text, _ in found], start if there else -1
