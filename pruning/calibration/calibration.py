"""Which text a model is calibrated on, and how its tokens are weighted."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from pruning.calibration.bos import Bos
from pruning.calibration.text import Text
from pruning.results.cache import Cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pruning.calibration.batch import Batch
    from pruning.tasks.task import Task


class Weight(StrEnum):
    """How much a token counts in a second moment."""

    none = "none"
    residual = "residual"  # 1 / square of what the next norm divides by that reads the error


class Target(StrEnum):
    """What the outputs of a pruned site should be."""

    local = "local"  # what the dense weights make of the same inputs
    dense = "dense"  # what the dense model has there


@dataclass
class Calibration:
    """A number of tokens of a text, in batches; a share of them is held out to judge by."""

    name: str = MISSING
    text: Text | None = MISSING  # null: the training rows of the task
    tokens: int = MISSING  # in all, held-out ones included
    sequence: int = MISSING  # tokens per sequence
    batch: int = MISSING  # sequences per forward pass
    held_out: float = MISSING  # share of the batches that judge ridges and losses
    pack: bool = MISSING  # documents joined and cut into full sequences, or one a row and padded
    weight: Weight = MISSING
    target: Target = MISSING
    bos: Bos = Bos.auto  # which rows of a text begin with the beginning-of-sequence token

    def __post_init__(self) -> None:
        for field in ("tokens", "sequence", "batch"):
            value = getattr(self, field)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"calibration.{field}={value} must be at least 1")
        if isinstance(self.held_out, float) and not 0 < self.held_out < 1:
            raise ValueError(
                f"calibration.held_out={self.held_out} must lie between 0 and 1: a share of the "
                "calibration tokens judges the update that the others give"
            )

    def batches(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        cache: Cache,
        seed: int,
        task: "Task | None" = None,
    ) -> list["Batch"]:
        """Tokenise shuffled documents into batches; every tenth or so (`held_out`) is held out.

        Without a text, the training rows of the task are the documents, with their labels.
        """
        found = self.up_to(self.tokens, tokenizer, cache, seed, task)
        there = sum(batch.tokens for batch in found)
        if there < self.tokens:
            where = "task.train" if self.text is None else "calibration.text"
            raise ValueError(
                f"calibration.tokens={self.tokens} is more than the {there} tokens of "
                f"{where}.path: ask for fewer, or give more text"
            )
        return found

    def up_to(
        self,
        tokens: int,
        tokenizer: "PreTrainedTokenizerBase",
        cache: Cache,
        seed: int,
        task: "Task | None" = None,
    ) -> list["Batch"]:
        """Return batches of so many tokens, or of all there are; more begin with the same ones."""
        from pruning.calibration.batch import pad, shuffled

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
                f"calibration.tokens={tokens} makes {len(batches)} batches of "
                f"{self.batch} x {self.sequence}, too few to hold out a share of {self.held_out}: "
                "lower calibration.batch or raise calibration.tokens"
            )
        for index, batch in enumerate(batches):
            batch.held_out = index % every == every - 1
        return batches

    def rows(
        self, documents: list[str], tokens: int, tokenizer: "PreTrainedTokenizerBase", seed: int
    ) -> "Batch":
        """Tokenise shuffled documents, packed or padded, up to so many tokens."""
        from pruning.calibration.batch import cut, pack, pad

        encode = self.bos.encoder(tokenizer, "calibration.bos")
        if self.sequence <= len(encode.head):
            raise ValueError(
                f"calibration.sequence={self.sequence} is the beginning-of-sequence token alone: "
                "give at least 2, or calibration.bos=never"
            )
        if self.pack:
            return pack(encode, documents, self.sequence, tokens, seed)
        filler: Any = tokenizer.pad_token_id or 0
        rows = pad(cut(encode, documents, self.sequence, seed), tokens, filler)
        return replace(rows, head=len(encode.head))
