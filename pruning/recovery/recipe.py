"""What training after pruning is given: below the config group and what carries it out."""

from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from pruning.data.text import Text
from pruning.system.options import Options

BUDGETS = ("steps", "tokens", "minutes")


class Precision(StrEnum):
    """What the passes of the student are computed in; its weights are float32 meanwhile."""

    auto = "auto"  # bfloat16 on CUDA, float32 on a CPU
    float32 = "float32"
    bfloat16 = "bfloat16"


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
        for name in ("task", "logits", "hidden"):
            value = getattr(self, name)
            if isinstance(value, float) and value < 0:
                raise ValueError(f"recovery.loss.{name}={value} must be at least 0")
        given = [self.task, self.logits, self.hidden]
        if all(isinstance(value, float) for value in given) and not any(given):
            raise ValueError(
                "recovery.loss: one of task, logits and hidden must be above 0; for no training "
                "give recovery=none"
            )
        if isinstance(self.temperature, float) and self.temperature <= 0:
            raise ValueError(f"recovery.loss.temperature={self.temperature} must be above 0")

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
        if isinstance(self.rank, int) and self.rank < 1:
            raise ValueError(f"recovery.lora.rank={self.rank} must be at least 1")
        if isinstance(self.dropout, float) and not 0 <= self.dropout < 1:
            raise ValueError(f"recovery.lora.dropout={self.dropout} must lie in [0, 1)")


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
    precision: Precision = Precision.auto  # of the passes; auto: bfloat16 on CUDA, else float32
    gradient_checkpointing: bool = False  # activations are computed twice and not kept
    save_steps: int = 100  # steps between checkpoints, from which a killed run goes on
    eval_steps: int | None = None  # steps between evaluations on the suite; null: none
    launcher: str | None = None  # command that starts the training's processes; null: this one

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "max_length",
            "steps",
            "tokens",
            "batch_size",
            "gradient_accumulation_steps",
            "save_steps",
            "eval_steps",
        ):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"recovery.{name}={value} must be at least 1")
        for name in ("learning_rate", "minutes", "max_grad_norm"):
            value = getattr(self, name)
            if isinstance(value, float) and value <= 0:
                raise ValueError(f"recovery.{name}={value} must be above 0")
        if isinstance(self.warmup_ratio, float) and not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"recovery.warmup_ratio={self.warmup_ratio} must lie in [0, 1)")
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
