"""The parts that a suite can have: a text, tasks of lm-eval, labelled texts, questions."""

import logging
import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from pruning.data.bos import Bos, Encoder
from pruning.data.questions import Question
from pruning.data.text import Text
from pruning.evaluation.part import Benchmark, Candidate, Measured, digest_of
from pruning.evaluation.specs import LabelledData, LmEvalData, QuestionData
from pruning.system.cache import Cache
from pruning.system.options import Options

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PERPLEXITY = "suite.perplexity"


@dataclass
class Perplexity(Options, Benchmark):
    """Token perplexity over non-overlapping windows of a text, once for each size of window.

    With `characters` it is bits per byte, which models of different tokenizers have in common.
    """

    where = "suite.perplexity"
    head = ""
    extent = "window"
    text: Text = MISSING  # the documents
    # tokens of a window, one size or more
    window: list[int] = field(default_factory=lambda: [2048])
    tokens: int | None = None  # how many of the text, from the beginning; null: all
    bos: Bos = Bos.auto  # which windows begin with the beginning-of-sequence token
    # how many of the text in the place of tokens, and bits per byte in the place of perplexity
    characters: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.window, list) and (not self.window or min(self.window) < 2):
            raise ValueError(
                f"suite.perplexity.window={self.window} must hold sizes of at least 2 tokens"
            )
        if (
            isinstance(self.tokens, int)
            and isinstance(self.window, list)
            and self.tokens < max(self.window)
        ):
            raise ValueError(
                f"suite.perplexity.tokens={self.tokens} must fill a window of {max(self.window)}, "
                "or be null for all"
            )
        self.check_range("characters", least=1)
        if self.tokens is not None and self.characters is not None:
            raise ValueError(
                f"suite.perplexity.tokens={self.tokens} and suite.perplexity.characters="
                f"{self.characters} both say how much of the text is read: leave one out"
            )

    def paths(self) -> list[str]:
        return [] if self.text.wheel else [self.text.path]

    def check(self, field: str, cache: Cache) -> None:
        self.text.documents(cache, f"{field}.text")

    def measure(self, name: str, candidate: Candidate) -> Measured:
        """Return `<name>/token_perplexity_<window>`, or `<name>/bits_per_byte_<window>`.

        `batch` windows of the largest size go through the model at a time, more of smaller ones.
        """
        from pruning.evaluation.perplexity import cut, ends, predicted_bytes, token_perplexity

        model, largest = candidate.model, max(self.window)
        encode = self.bos.encoder(candidate.tokenizer, f"{PERPLEXITY}.bos")
        text = self._text(encode, candidate.cache)
        head, tokens = encode.head, self._tokens(encode, text)
        per_byte = self.characters is not None
        places = ends(encode, text) if per_byte else []
        if len(tokens) + len(head) < largest:
            raise ValueError(
                f"suite.perplexity.window={self.window} is more than the {len(tokens)} tokens of "
                f"suite.perplexity.text.path={self.text.path!r}: lower it, or give more text"
            )
        if self.tokens is not None and len(tokens) < self.tokens:
            log.warning("suite.perplexity.tokens=%s: the text has %s", self.tokens, len(tokens))
        metrics, windows = {}, {}
        for window in self.window:
            kind = "bits_per_byte" if per_byte else "token_perplexity"
            key, count = f"{name}/{kind}_{window}", len(cut(tokens, window, head))
            batch = candidate.batch * (largest // window)
            metrics[key] = token_perplexity(model, tokens, window, batch, head)
            predicted = count * (window - 1)
            windows[key] = {"windows": count, "predicted": predicted, "bos": encode.begun}
            if per_byte:
                size = predicted_bytes(text, places, window, len(head))
                metrics[key] = math.log2(metrics[key]) * predicted / size
                windows[key]["bytes"] = size
        return Measured(metrics, {name: digest_of([*head, *tokens.tolist()])}, windows=windows)

    def reads(
        self, name: str, tokenizer: "PreTrainedTokenizerBase", cache: Cache
    ) -> list[list[int]]:
        encode = self.bos.encoder(tokenizer, f"{PERPLEXITY}.bos")
        return [[*encode.head, *self._tokens(encode, self._text(encode, cache)).tolist()]]

    def per_byte(self, tokenizer: "PreTrainedTokenizerBase", cache: Cache) -> "Perplexity":
        """Return it in bits per byte, of the text that its tokens are of with this tokenizer."""
        from pruning.evaluation.perplexity import ends

        encode = self.bos.encoder(tokenizer, f"{PERPLEXITY}.bos")
        text = self._text(encode, cache)
        return replace(self, tokens=None, characters=max(ends(encode, text)[: self.tokens]))

    def _text(self, encode: Encoder, cache: Cache) -> str:
        """Return the text, or at least as much of it as is read."""
        from pruning.evaluation.perplexity import joined

        documents = self.text.documents(cache, "suite.perplexity.text")
        enough = None if self.tokens is None else self.tokens + max(self.window)
        return joined(encode, documents, enough)[: self.characters]

    def _tokens(self, encode: Encoder, text: str) -> "Tensor":
        import torch

        return torch.tensor(encode(text)[: self.tokens], dtype=torch.long)


@dataclass
class LmEvalTask(LmEvalData, Benchmark):
    """A task of lm-eval, on documents that lm-eval has or that are named here."""

    head = ""

    def paths(self) -> list[str]:
        given = [path for path in (self.path, self.examples) if path and not self.wheel]
        return [path.replace("{dataset_name}", "*") for path in given]

    def check(self, field: str, cache: Cache) -> None:
        from pruning.evaluation.tasks import check

        check(self, field, cache)

    def measure(self, name: str, candidate: Candidate) -> Measured:
        from pruning.evaluation.tasks import evaluate_task

        return evaluate_task(name, self, candidate)

    def reads(
        self, name: str, tokenizer: "PreTrainedTokenizerBase", cache: Cache
    ) -> list[list[int]]:
        from pruning.evaluation.tasks import texts

        return [plain(tokenizer, [text]) for text in texts(name, self, cache)]


def plain(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[int]:
    """Return the tokens of texts in a row, without special ones."""
    options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
    return [i for text in texts for i in tokenizer(text, **options).input_ids]


class RowsBenchmark(Benchmark):
    """What is read as rows; goes with a class of `Rows` that has `read`."""

    group: ClassVar[str]  # config path of such parts
    unit: ClassVar[str]  # what a row is
    path: str
    wheel: str | None

    @abstractmethod
    def read(self, cache: Cache, field: str, limit: int | None = None) -> list[Any]:
        """Return the rows."""

    def paths(self) -> list[str]:
        return [] if self.wheel else [self.path]

    def check(self, field: str, cache: Cache) -> None:
        if not self.read(cache, field, 1):
            raise ValueError(f"{field}.path={self.path!r} holds no {self.unit}: give others")

    @abstractmethod
    def texts(self, row: Any) -> list[str]:
        """Return what a model reads of a row."""

    def reads(
        self, name: str, tokenizer: "PreTrainedTokenizerBase", cache: Cache
    ) -> list[list[int]]:
        rows = self.read(cache, f"{self.group}.{name}")
        return [plain(tokenizer, self.texts(row)) for row in rows]


@dataclass
class ClassificationBenchmark(LabelledData, RowsBenchmark):
    """Labelled rows that a classifier's predictions are judged on."""

    head = "ForSequenceClassification"
    group = "suite.labelled"
    unit = "rows"

    def texts(self, row: dict) -> list[str]:
        return [str(row[column]) for column in self.columns]

    def measure(self, name: str, candidate: Candidate) -> Measured:
        from pruning.evaluation.classification import evaluate_labelled

        return evaluate_labelled(name, self, candidate)


@dataclass
class QABenchmark(QuestionData, RowsBenchmark):
    """Questions that a reader's answers are judged on."""

    head = "ForQuestionAnswering"
    group = "suite.questions"
    extent = "max_length"
    unit = "questions"

    def texts(self, row: Question) -> list[str]:
        return [row.text, row.context]

    def measure(self, name: str, candidate: Candidate) -> Measured:
        from pruning.evaluation.answers import evaluate_questions

        return evaluate_questions(name, self, candidate)
