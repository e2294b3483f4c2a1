"""Questions about contexts that hold their answers, as in SQuAD."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

from pruning.data.rows import Rows, report_skipped
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
        """Return the questions whose texts are there, at most `limit`.

        ValueError where the file, a column or an answer is not there, or of the wrong type.
        """
        self._check_pattern(field)
        names = ["context", "answers"] + (["question"] if self.pattern is None else [])
        needed = [(name, getattr(self, name)) for name in names]
        return list(islice(self._questions(cache, field, needed), limit))

    def _questions(
        self, cache: Cache, field: str, needed: list[tuple[str, str]]
    ) -> Iterator[Question]:
        texts = [(option, column) for option, column in needed if option != "answers"]
        columns, skipped = [column for _, column in texts], 0
        for place, row in self.placed(cache, field, needed, texts=columns):
            cells = [self.cell(row, place, field, each, missing=True) for each in texts]
            if None in cells:
                skipped += 1
                continue
            context, text = cells if self.pattern is None else self._split(cells[0], field)
            try:
                answers, start = _answers(row[self.answers], context)
            except (TypeError, KeyError) as error:
                raise ValueError(
                    f"{field}.answers={self.answers!r}: {place} has "
                    f"{str(row[self.answers])[:60]!r}, which are no answers: give a text, several, "
                    "or SQuAD's {'text': [...], 'answer_start': [...]}"
                ) from error
            if start < 0 and (answers or not self.unanswerable):
                raise ValueError(
                    f"{field}.answers={self.answers!r}: the context of {text!r} holds no answer "
                    f"{answers[:1]}; correct or leave out such questions, or with "
                    f"{field}.unanswerable=true let those without any stay (SQuAD 2.0 has some)"
                )
            yield Question(text, context, answers, start)
        report_skipped(skipped, field, self.path)

    def _check_pattern(self, field: str) -> None:
        """Raise ValueError where the pattern is none, or does not name both parts."""
        try:
            groups = re.compile(self.pattern or "").groupindex
        except re.error as error:
            raise ValueError(
                f"{field}.pattern={self.pattern!r} is no regular expression ({error}): correct it"
            ) from error
        if self.pattern is not None and not {"context", "question"} <= groups.keys():
            raise ValueError(
                f"{field}.pattern={self.pattern!r} must have the groups (?P<context>...) and "
                "(?P<question>...)"
            )

    def _split(self, both: str, field: str) -> tuple[str, str]:
        """Return the context and the question."""
        assert self.pattern is not None
        match = re.fullmatch(self.pattern, both, re.DOTALL)
        if match is None:
            raise ValueError(
                f"{field}.pattern={self.pattern!r} does not fit {both[:80]!r}: correct it, or "
                f"leave it out where {field}.question is a column"
            )
        return match["context"], match["question"]


def _answers(given: Any, context: str) -> tuple[list[str], int]:
    """Return the texts, and where the first begins; -1 where it does not.

    TypeError or KeyError where they are of no form that a row may have them in.
    """
    if given is None or isinstance(given, str):
        given = [] if given is None else [given]
    elif isinstance(given, list) and all(isinstance(answer, dict) for answer in given):
        given = {key: [each[key] for each in given] for key in ("text", "answer_start")}
    if isinstance(given, dict):
        _require(list, given["text"], given["answer_start"])
        starts = chain(given["answer_start"], repeat(-1))  # of the first text at least
        pairs = list(zip(given["text"], starts, strict=False))
    else:
        _require(list, given)
        _require(str, *given)
        pairs = [(text, context.find(text)) for text in given]
    for text, start in pairs:
        _require(str, text)
        _require(int, start)
    answers = [(text, start) for text, start in pairs if text]
    if not answers:
        return [], -1
    first, start = answers[0]
    there = start >= 0 and context.startswith(first, start)
    return [text for text, _ in answers], start if there else -1


def _require(kind: type, *values: Any) -> None:
    if not all(isinstance(value, kind) for value in values):
        raise TypeError
