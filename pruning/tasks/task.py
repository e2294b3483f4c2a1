"""A task with labels: the config group `task`."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from pruning.results.cache import Cache
from pruning.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pruning.calibration.batch import Row


@dataclass
class Labelled(Rows):
    """Texts, or pairs of texts, with labels."""

    columns: list[str] = MISSING  # of the text, or of the two
    label: str = "label"  # column of class numbers, or of the number that is predicted

    def read(self, cache: Cache, field: str, limit: int | None = None) -> list[dict]:
        """Return the rows; ValueError where the file or a column is not there."""
        needed = [("columns", column) for column in self.columns] + [("label", self.label)]
        found = []
        for row in self.rows(cache, field, needed):
            if limit is not None and len(found) >= limit:
                break
            found.append(row)
        return found


@dataclass
class Task:
    """What a classifier is fine-tuned for, and how; its rows also calibrate pruning."""

    name: str = MISSING
    train: Labelled = MISSING
    classes: int = MISSING  # 1: a number is predicted
    sequence: int = MISSING  # tokens per row at most
    epochs: float = MISSING  # of the dense model
    batch: int = MISSING  # rows per step
    rate: float = MISSING  # learning rate: rises for a tenth of the steps, then falls to 0
    save: int = MISSING  # steps between checkpoints, from which a killed run goes on

    def __post_init__(self) -> None:
        for field in ("classes", "sequence", "batch", "save"):
            value = getattr(self, field)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"task.{field}={value} must be at least 1")
        for field in ("epochs", "rate"):
            value = getattr(self, field)
            if isinstance(value, float) and value <= 0:
                raise ValueError(f"task.{field}={value} must be above 0")

    def examples(self, tokenizer: "PreTrainedTokenizerBase", cache: Cache) -> "list[Row]":
        """Tokenise the training rows, in order."""
        from pruning.tasks.examples import examples

        rows = self.train.read(cache, "task.train")
        return examples(self.train, rows, tokenizer, self.sequence, self.classes)

    def teach(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        cache: Cache,
        seed: int,
    ) -> "PreTrainedModel":
        """Return the model fine-tuned; itself where it came with a head for such a task."""
        from pruning.tasks.finetune import finetuned

        if type(model).__name__ in (model.config.architectures or ()):
            return model
        return finetuned(self, model, tokenizer, cache, seed)

    def recipe(self) -> dict:
        """Return what a fine-tuned model depends on beside its rows."""
        return {k: v for k, v in asdict(self).items() if k not in ("name", "train", "save")}
