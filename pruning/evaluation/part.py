"""What every part of a suite can do: find its data, measure a model."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pruning.data.files import local
from pruning.system.cache import Cache, file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Item = TypeVar("Item")


@dataclass
class Candidate:
    """A model to be measured, and how."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    cache: Cache
    limit: int | None  # documents or rows; None: all
    batch: int  # sequences per forward pass
    seed: int | None = None  # of which ones; None: from the beginning
    samples: int = 0  # documents of a task of lm-eval whose prompts and answers are kept

    def chosen(self, count: int) -> list[int]:
        """Return the numbers of the documents to measure on, of so many."""
        size = count if self.limit is None else min(self.limit, count)
        if self.seed is None:
            return list(range(size))
        return sorted(Random(self.seed).sample(range(count), size))

    def take(self, read: Callable[[int | None], list[Item]]) -> list[Item]:
        """Return the rows to measure on; `read` is called with how many it need return."""
        rows = read(self.limit if self.seed is None else None)
        return [rows[index] for index in self.chosen(len(rows))]


@dataclass
class Measured:
    """Numbers of one model."""

    metrics: dict[str, float]
    read: dict[str, str]  # by part, the hash of what was asked, and of the right answers
    samples: list[dict[str, Any]] = field(default_factory=list)  # prompts, answers, metrics
    windows: dict[str, dict[str, Any]] = field(default_factory=dict)  # of a text, by metric

    def not_finite(self) -> str:
        """List the metrics that are NaN or infinite; their standard errors and chances may be."""
        return ", ".join(
            f"{key} is {value}"
            for key, value in self.metrics.items()
            if not math.isfinite(value) and not key.endswith(("_stderr", "_chance"))
        )


class Benchmark(ABC):
    """A text, a task of lm-eval, labelled texts, or questions."""

    head: ClassVar[str]  # how the class names of the models end that it is for; "": decoders
    extent: ClassVar[str] = ""  # the option with how many tokens it reads at once; "": what fits

    @abstractmethod
    def paths(self) -> list[str]:
        """Return the local paths, or hub ids, that it reads; none in wheels."""

    @abstractmethod
    def check(self, field: str, cache: Cache) -> None:
        """Raise ValueError where its data cannot be had; `field` is its config path."""

    @abstractmethod
    def measure(self, name: str, candidate: Candidate) -> Measured:
        """Return metrics named `<name>/<metric>`."""

    @abstractmethod
    def reads(
        self, name: str, tokenizer: "PreTrainedTokenizerBase", cache: Cache
    ) -> list[list[int]]:
        """Return the tokens of its texts, without special ones."""

    def sums(self) -> dict[str, str]:
        """Return the sums of the local files, those of folders too."""
        files = [path for given in self.paths() for path in local(Path(given), "path")]
        files += [path for folder in files if folder.is_dir() for path in folder.glob("*")]
        return {str(path): file_sha256(path) for path in sorted(files) if path.is_file()}


def digest_of(items: Iterable[object]) -> str:
    """Hash texts, numbers and tuples of them, 16 hexadecimal digits."""
    state = hashlib.sha256()
    for item in items:
        state.update(repr(item).encode() + b"\0")
    return state.hexdigest()[:16]
