"""What a model is evaluated on, part by part, and one dictionary of numbers that comes of it."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from pruning.evaluation.part import Benchmark, Candidate, Measured
from pruning.evaluation.parts import (
    PERPLEXITY,
    ClassificationBenchmark,
    LmEvalTask,
    Perplexity,
    QABenchmark,
)
from pruning.system.cache import Cache, digest
from pruning.system.files import to_json
from pruning.system.options import Options
from pruning.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pruning.data.batch import Row

log = logging.getLogger(__name__)

GROUPS = ("tasks", "labelled", "questions")  # fields with parts by name


@dataclass
class Suite(Options):
    """A text for token perplexity and lm-eval tasks, or labelled texts, or questions."""

    where = "suite"
    name: str = MISSING  # that metrics begin with
    perplexity: Perplexity | None = None  # of a text, token by token
    # lm-eval's name of the task -> its documents
    tasks: dict[str, LmEvalTask] = field(default_factory=dict)
    labelled: dict[str, ClassificationBenchmark] = field(
        default_factory=dict
    )  # for classifiers: a name -> its rows
    limit: int | None = None  # documents or rows per task; null: all
    batch_size: int = 8  # sequences per forward pass
    questions: dict[str, QABenchmark] = field(default_factory=dict)  # for readers, likewise
    seed: int | None = None  # of which ones `limit` takes; null: from the beginning
    samples: int = 0  # documents of each task of lm-eval that samples.jsonl shows
    average: list[str] = field(default_factory=list)  # lm-eval tasks to take the mean over

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("limit", "batch_size", least=1)
        self.check_range("samples", "seed", least=0)
        for name in self.average if self.tasks else ():
            if name not in self.tasks:
                raise ValueError(
                    f"suite.average has {name!r}, which is none of suite.tasks: "
                    f"{', '.join(self.tasks)}; give all whose mean is wanted"
                )

    def for_task(self, task: Task | None) -> "Suite":
        """Return the part for an encoder of this task: named as it is, or labelled `<task>_<part>`.

        ValueError where there are none, or where several tasks have rows and none is named.
        """
        given = [*self.labelled, *self.questions]
        if not given:
            return self
        name = "" if task is None else task.name
        named = {key for key in given if key == name}
        named |= {key for key in self.labelled if key.startswith(f"{name}_")}
        if not named and (task is not None or len(given) > 1):
            use = f"for task={name}" if name else "without a task"
            raise ValueError(
                f"suite={self.name!r} cannot be used {use}: it has rows of "
                f"{', '.join(given)}; give one of them as the task, or another suite"
            )
        return self._without({key for key in given if named and key not in named})

    def available(self, cache: Cache) -> "tuple[Suite, dict[str, str]]":
        """Return the suite of all parts whose data can be had, and what is wrong with the others.

        ValueError where there are none left.
        """
        missing: dict[str, str] = {}
        for path, name, part in self.parts():
            try:
                part.check(path, cache)
            except ValueError as error:
                missing[name] = str(error)
                if len(missing) == len(list(self.parts())):
                    raise
                log.warning("not run: %s", error)
        return self._without(set(missing)), missing

    def parts(self) -> Iterator[tuple[str, str, Benchmark]]:
        """Yield (config path, name, part) of all that is evaluated; a text has the name `text`."""
        if self.perplexity is not None:
            yield PERPLEXITY, "text", self.perplexity
        for kind in GROUPS:
            for name, part in getattr(self, kind).items():
                yield f"suite.{kind}.{name}", name, part

    def evaluate(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        cache: Cache,
        identity: str | None = None,
    ) -> Measured:
        """Return `<suite>/<task>/<metric>`, with a `..._stderr` where there is one.

        An accuracy also has a `..._chance`, what guessing would give; `average` adds means over
        lm-eval tasks: of `acc`, and of `acc_norm` or `acc` where a task has no such. Token
        perplexity is `<suite>/text/token_perplexity_<window>`. A part that was measured before, by
        whatever suite, is found in the cache. The model is left in the mode (train or eval) that it
        came in, the tokenizer as it was. `identity` is its fingerprint, where that is known.
        """
        from pruning.models.source import fingerprint

        self.check(model, tokenizer)
        which = self.limit, self.batch_size, self.seed, self.samples
        candidate = Candidate(model, tokenizer, cache, *which)
        measured = Measured({}, {})
        if not list(self.parts()):
            return measured
        of_both = [identity or fingerprint(model), _tokenizer_digest(tokenizer)]
        training = model.training
        model.eval()
        try:
            for _, name, part in self.parts():
                one = _measured(name, part, candidate, of_both)
                measured.metrics |= one.metrics
                measured.read |= one.read
                measured.samples += one.samples
                measured.windows |= one.windows
        finally:
            model.train(training)
        measured.metrics |= self._averages(measured.metrics)
        measured.metrics = {f"{self.name}/{key}": value for key, value in measured.metrics.items()}
        measured.windows = {f"{self.name}/{key}": value for key, value in measured.windows.items()}
        return measured

    def shared(
        self, rows: "Sequence[Row]", tokenizer: "PreTrainedTokenizerBase", cache: Cache
    ) -> dict[str, float]:
        """Return the share of the rows that hold some of what a part asks, where any do."""
        from pruning.data.batch import digest_rows

        identity = [digest_rows(rows), _tokenizer_digest(tokenizer)]
        shares = {
            name: _share(name, part, rows, tokenizer, cache, identity)
            for _, name, part in self.parts()
        }
        return {name: share for name, share in shares.items() if share}

    def identity(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Hash what is measured on a model with this tokenizer, and under which names."""
        asked = [_asked(name, part) for _, name, part in self.parts()]
        which = [self.limit, self.batch_size, self.seed, self.average]
        return digest([self.name, _tokenizer_digest(tokenizer), asked, which])

    def per_byte(self, tokenizer: "PreTrainedTokenizerBase", cache: Cache) -> "Suite":
        """Return it with its text in bits per byte: this tokenizer's tokens of it, as bytes."""
        part = self.perplexity
        return self if part is None else replace(self, perplexity=part.per_byte(tokenizer, cache))

    def _without(self, names: set[str]) -> "Suite":
        left = {
            kind: {name: part for name, part in getattr(self, kind).items() if name not in names}
            for kind in GROUPS
        }
        average = self.average if left["tasks"].keys() >= set(self.average) else []
        perplexity = None if "text" in names else self.perplexity
        return replace(self, **left, average=average, perplexity=perplexity)

    def check(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raise ValueError where a part is for other models, tokenizers, or for longer ones."""
        from pruning.models.sites import architecture, positions

        name, longest = model.__class__.__name__, positions(model)
        encoder = architecture(model).encoder
        for path, _, part in self.parts():
            wrong = not name.endswith(part.head) if part.head else encoder
            if wrong:
                raise ValueError(
                    f"suite={self.name!r}: {path} measures {part.head or 'decoders'}, and this is "
                    f"a {name}: use suite=quick or suite=wikitext for a decoder, suite=glue for a "
                    "classifier, suite=squad for a reader, or suite=none"
                )
            given = getattr(part, part.extent) if part.extent else 0
            if longest and max(given if isinstance(given, list) else [given]) > longest:
                raise ValueError(
                    f"{path}.{part.extent}={given} goes beyond the {longest} positions of this "
                    f"model: give {longest} or less"
                )
        if self.tasks and tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ValueError(
                f"suite.tasks.{next(iter(self.tasks))}: lm-eval needs a beginning- or "
                "end-of-sequence token, and this tokenizer has neither: name its eos_token in "
                "tokenizer_config.json, or choose a suite without tasks of lm-eval"
            )

    def _averages(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return the mean over tasks of acc, and of acc_norm where there is one."""
        if not self.tasks:
            return {}
        plain = [f"{name}/acc" for name in self.average]
        if without := [name for name in self.average if f"{name}/acc" not in metrics]:
            log.warning("suite.average: no mean, since %s gave no acc", ", ".join(without))
        if not plain or without:
            return {}
        normed = [f"{key}_norm" if f"{key}_norm" in metrics else key for key in plain]
        averages = {}
        for name, keys in (("average/acc", plain), ("average/acc_norm", normed)):
            averages[name] = fmean(metrics[key] for key in keys)
            errors = [metrics[f"{key}_stderr"] for key in keys if f"{key}_stderr" in metrics]
            if len(errors) == len(keys):
                averages[f"{name}_stderr"] = math.hypot(*errors) / len(keys)
            chances = [metrics[f"{key}_chance"] for key in keys if f"{key}_chance" in metrics]
            if len(chances) == len(keys):
                averages[f"{name}_chance"] = fmean(chances)
        return averages


def _tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash a tokenizer and which tokens are special, without what changes from call to call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend else {"vocabulary": tokenizer.get_vocab()}
    content = {k: v for k, v in content.items() if k not in ("truncation", "padding")}
    special = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    sides = tokenizer.padding_side, tokenizer.truncation_side
    return digest([type(tokenizer).__name__, content, special, tokenizer.model_input_names, sides])


def _asked(name: str, part: Benchmark) -> dict[str, Any]:
    """Return what tells the documents of a part, and how they are asked, from others."""
    return {
        "part": [type(part).__name__, name, asdict(part)],  # type: ignore[call-overload]
        "files": part.sums(),
        "lm_eval": version("lm_eval"),
    }


def _generation(model: "PreTrainedModel") -> dict[str, Any]:
    """Return how a model answers where it is asked to, such as a penalty of repetitions."""
    config = getattr(model, "generation_config", None)
    return {} if config is None else json.loads(config.to_json_string(use_diff=True))


def _share(
    name: str,
    part: Benchmark,
    rows: "Sequence[Row]",
    tokenizer: "PreTrainedTokenizerBase",
    cache: Cache,
    identity: list[str],
) -> float:
    """Compare rows with one part, or find that in the cache; `identity`: of rows and tokenizer."""
    from pruning.data.contamination import holding

    def build(directory: Path) -> None:
        special: list[int] = tokenizer.all_special_ids  # type: ignore[assignment]
        held = holding(rows, part.reads(name, tokenizer, cache), special)
        (directory / "share.json").write_text(json.dumps(fmean(held)))

    key = {"version": 1, "rows": identity, **_asked(name, part)}
    return json.loads((cache.stage("overlap", key, build) / "share.json").read_text())


def _measured(name: str, part: Benchmark, candidate: Candidate, identity: list[str]) -> Measured:
    """Measure one part, or find it in the cache; `identity` is that of model and tokenizer."""
    key = {
        "version": 5,
        "model": identity,
        **_asked(name, part),
        "limit": candidate.limit,
        "seed": None if candidate.limit is None else candidate.seed,
        "batch": candidate.batch,
        "samples": candidate.samples if isinstance(part, LmEvalTask) else 0,
        "device": candidate.model.device.type,
        "generation": _generation(candidate.model) if isinstance(part, LmEvalTask) else None,
    }

    def build(directory: Path) -> None:
        measured = part.measure(name, candidate)
        (directory / "measured.json").write_text(to_json(asdict(measured)))

    entry = candidate.cache.stage("evaluate", key, build)
    kept = Measured(**json.loads((entry / "measured.json").read_text()))
    kept.metrics = {k: math.nan if v is None else v for k, v in kept.metrics.items()}
    return kept
