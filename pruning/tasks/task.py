"""What an encoder is fine-tuned for: the config group `task`."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from pruning.data.labelled import Labelled
from pruning.data.questions import Questions
from pruning.system.cache import Cache
from pruning.system.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pruning.data.batch import Row


@dataclass
class Task(Options, ABC):
    """What a model is fine-tuned for, and how; its rows (`train`) also calibrate pruning."""

    head: ClassVar[str]  # the class of transformers that loads a model with a head for it
    where = "task"
    name: str = MISSING  # that a suite has its rows by
    max_length: int = 128  # tokens per row at most
    epochs: float = 3  # of the dense model, where it has no trained head
    batch_size: int = 32  # rows per step
    learning_rate: float = 0.00005  # learning rate: rises for a tenth of the steps, then falls to 0
    save_steps: int = 500  # steps between checkpoints, from which a killed run goes on
    seed: int = 0  # of a new head, and of the order of the rows

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("max_length", "batch_size", "save_steps", least=1)
        self.check_range("epochs", "learning_rate", above=0)
        self.check_range("seed", least=0)

    @abstractmethod
    def examples(self, tokenizer: "PreTrainedTokenizerBase", cache: Cache) -> "list[Row]":
        """Tokenise the training rows, in order."""

    @abstractmethod
    def head_kwargs(self) -> dict[str, Any]:
        """Return options that a model with a new head is loaded with."""

    def fine_tune(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cache: Cache
    ) -> "PreTrainedModel":
        """Return the model fine-tuned; itself where it came with a head for such a task."""
        from pruning.tasks.finetune import Schedule, fine_tune

        if type(model).__name__ in (model.config.architectures or ()):
            return model
        schedule = Schedule(
            self.epochs, self.batch_size, self.learning_rate, self.save_steps, self.seed
        )
        return fine_tune(model, self.examples(tokenizer, cache), schedule, self.recipe(), cache)

    def recipe(self) -> dict:
        """Return what a fine-tuned model depends on beside its rows."""
        return {k: v for k, v in asdict(self).items() if k not in ("name", "train", "save_steps")}


@dataclass
class Classification(Task):
    """A class, or a number, for a text or a pair of texts."""

    head = "AutoModelForSequenceClassification"
    train: Labelled = MISSING  # its rows
    classes: int = 2  # 1: a number is predicted

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("classes", least=1)

    def examples(self, tokenizer: "PreTrainedTokenizerBase", cache: Cache) -> "list[Row]":
        """Tokenise the training rows, in order."""
        from pruning.tasks.examples import examples

        rows = read(self.train, cache)
        return examples(self.train, rows, tokenizer, self.max_length, self.classes)

    def head_kwargs(self) -> dict[str, Any]:
        """Return options that a model with a new head is loaded with."""
        return {"num_labels": self.classes}


@dataclass
class QuestionAnswering(Task):
    """The place in a context where the answer to a question begins, and where it ends."""

    head = "AutoModelForQuestionAnswering"
    max_length: int = 384  # tokens per window: the question and a part of its context
    epochs: float = 2
    batch_size: int = 12
    learning_rate: float = 0.00003
    train: Questions = MISSING  # its rows
    stride: int = 128  # tokens that two windows of a long context share

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("stride", least=1)

    def examples(self, tokenizer: "PreTrainedTokenizerBase", cache: Cache) -> "list[Row]":
        """Tokenise the training questions, a row for each window of their contexts."""
        from pruning.tasks.windows import windows

        asked = read(self.train, cache)
        rows = windows(asked, tokenizer, self.max_length, self.stride, "task")
        return [window.labelled(asked[window.question]) for window in rows]

    def head_kwargs(self) -> dict[str, Any]:
        """Return options that a model with a new head is loaded with."""
        return {"num_labels": 2}  # beginning, end


def read(train: Labelled | Questions, cache: Cache) -> list[Any]:
    """Return the training rows of a task; ValueError where there are none."""
    rows = train.read(cache, "task.train")
    if not rows:
        raise ValueError(f"task.train.path={train.path!r} holds no rows: give others")
    return rows
