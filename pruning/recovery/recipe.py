"""What training after pruning is given: below the config group and what carries it out."""

from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from pruning.data.text import Text
from pruning.system.options import Options
from pruning.system.precision import Precision

BUDGETS = ("steps", "tokens", "minutes")


class LrSchedulerType(StrEnum):
    """How the learning rate falls to 0 after it has risen."""

    linear = "linear"
    cosine = "cosine"


@dataclass
class Loss(Options):
    """What is minimised: a weighted sum of three losses; the teacher is the dense model."""

    where = "recovery.loss"
    task: float = 0  # of the labels, or of the next tokens
    logits: float = 1  # KL divergence of the student's predictions from the teacher's
    hidden: float = 1  # distance of the hidden states behind every block
    temperature: float = 1  # of `logits`
    relative: bool = True  # whether a token's distance is divided by its own norm

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("task", "logits", "hidden", least=0)
        self.check_range("temperature", above=0)
        given = [self.task, self.logits, self.hidden]
        if all(isinstance(value, float) for value in given) and not any(given):
            raise ValueError(
                "recovery.loss: one of task, logits and hidden must be above 0; for no training "
                "give recovery=none"
            )

    @property
    def uses_teacher(self) -> bool:
        """Say whether the teacher is asked."""
        return self.logits > 0 or self.hidden > 0


@dataclass
class Lora(Options):
    """Adapters of low rank, trained in the place of the weights and merged into them at the end."""

    where = "recovery.lora"
    rank: int = 8  # of every adapter
    alpha: float = 16  # the adapters' products count alpha / rank
    dropout: float = 0.05  # of the adapters' inputs
    modules: str = "*"  # glob of the projections' paths within a block

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("rank", least=1)
        self.check_range("alpha", above=0)
        self.check_range("dropout", least=0, below=1)


@dataclass
class Recipe(Options):
    """How a pruned model is trained; one budget of steps, tokens or minutes."""

    where = "recovery"
    name: str = "distill"  # that results name it by
    loss: Loss = field(default_factory=Loss)  # what is minimised
    lora: Lora | None = None  # null: every weight is trained
    # of rows to train on; path "": the calibration's text, or the rows of the task
    text: Text = field(default_factory=lambda: Text(path=""))
    max_length: int = 256  # tokens of a row of text
    steps: int | None = 300  # the budget; or null, and one of the next two
    tokens: int | None = None  # the budget in tokens
    minutes: float | None = None  # of training, evaluations aside
    batch_size: int = 2  # rows of a forward pass
    gradient_accumulation_steps: int = 1  # forward passes of a step
    learning_rate: float = 0.0001  # the largest learning rate
    warmup_ratio: float = 0.1  # share of the budget in which it rises
    lr_scheduler_type: LrSchedulerType = LrSchedulerType.linear  # how it falls to 0 then
    weight_decay: float = 0.01  # AdamW's
    max_grad_norm: float = 1.0  # largest norm of the gradient
    precision: Precision = Precision.auto  # of the passes; auto: bfloat16 where that is faster
    gradient_checkpointing: bool = False  # activations are computed twice and not kept
    save_steps: int = 100  # steps between checkpoints, from which a killed run goes on
    eval_steps: int | None = None  # steps between evaluations on the suite; null: none
    launcher: str | None = None  # command that starts the training's processes; null: this one

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("max_length", "steps", "tokens", "batch_size", least=1)
        self.check_range("gradient_accumulation_steps", "save_steps", "eval_steps", least=1)
        self.check_range("learning_rate", "minutes", "max_grad_norm", above=0)
        self.check_range("warmup_ratio", least=0, below=1)
        self.check_range("weight_decay", least=0)
        budget = {name: getattr(self, name) for name in BUDGETS}
        if MISSING not in budget.values() and sum(v is not None for v in budget.values()) != 1:
            given = ", ".join(f"recovery.{k}={v}" for k, v in budget.items() if v is not None)
            raise ValueError(
                f"{given or 'recovery'} must be one budget of {', '.join(BUDGETS)}: give one of "
                "them, and null for the others"
            )
        for name in ("eval_steps", "minutes"):
            value = getattr(self, name)
            if self.launcher not in (None, MISSING) and value is not None:
                raise ValueError(
                    f"recovery.{name}={value} works in one process: leave recovery.launcher out, "
                    f"or give recovery.{name}=null"
                )

    def plain(self) -> dict[str, Any]:
        """Return its own fields, without those of a subclass, as JSON can hold them."""
        values = asdict(self)
        return {field.name: values[field.name] for field in fields(Recipe)}

    def identity(self) -> dict[str, Any]:
        """Return what a trained model depends on beside models and rows."""
        aside = ("name", "text", "save_steps", "launcher", "precision")
        return {key: value for key, value in self.plain().items() if key not in aside}


@dataclass
class LocalRecipe(Options):
    """How each pruned block is fitted to what the dense block gives, on the calibration text."""

    where = "recovery"
    name: str = "local"  # that results name it by
    epochs: int = 5  # passes of the calibration text through a block; the best of them is kept
    learning_rate: float = 0.001  # the largest learning rate; it falls to 0
    warmup_ratio: float = 0.1  # share of the steps in which it rises
    precision: Precision = Precision.auto  # of the passes; auto: bfloat16 where that is faster

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("epochs", least=1)
        self.check_range("learning_rate", above=0)
        self.check_range("warmup_ratio", least=0, below=1)

    @property
    def passes(self) -> float:
        """Count passes of the text: three per epoch, two of each model for its states."""
        return 3.0 * self.epochs + 4.0
