"""A student as the Trainer trains it: its loss, its budget, its learning rate."""

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, Trainer, TrainerCallback

from pruning.data.batch import INPUTS
from pruning.models.blockwise import predictions
from pruning.models.sites import architecture
from pruning.recovery import shards
from pruning.recovery.losses import distance, divergence
from pruning.recovery.recipe import Loss, LrSchedulerType, Recipe
from pruning.system.environment import resident
from pruning.system.precision import computing

GIVEN = (*INPUTS, "attention_mask")


class DistillationLoss:
    """The loss of a batch, and what has been read so far."""

    def __init__(self, loss: Loss, teacher: PreTrainedModel, in_bfloat16: bool = False):
        self.loss, self.teacher = loss, teacher.eval()
        self.in_bfloat16 = in_bfloat16  # the teacher's products; the Trainer sees to the student's
        self.encoder = architecture(teacher).encoder
        self.tokens = 0  # read by this process, and by one before it that was killed
        self.peaks: tuple[float, float | None] = (0.0, None)  # GiB, host and device, when sampled
        self.parts: dict[str, list[float]] = {}  # since they were last asked for

    def __call__(self, student: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        """Return L and the student's outputs."""
        loss, mask = self.loss, batch["attention_mask"]
        self.tokens += int(mask.sum())
        given = {name: batch[name] for name in GIVEN if name in batch}
        options: dict[str, Any] = {} if self.encoder else {"use_cache": False}
        options["output_hidden_states"] = loss.hidden > 0
        outputs = student(**(batch if loss.task else given), **options)
        parts: dict[str, Tensor] = {}
        if loss.task:
            parts["task"] = outputs.loss
        if loss.uses_teacher:
            with torch.no_grad(), computing(self.in_bfloat16, mask.device):
                said = self.teacher(**given, **options)
        if loss.logits:
            own, theirs = (predictions(each, mask) for each in (outputs, said))
            parts["logits"] = divergence(own, theirs, loss.temperature)
        if loss.hidden:  # the first is what the embeddings give
            streams = outputs.hidden_states[1:], said.hidden_states[1:]
            parts["hidden"] = distance(*streams, mask, loss.relative)
        self.sample()  # all activations are there now
        for name, value in parts.items():
            self.parts.setdefault(name, []).append(float(value.detach()))
        total = sum(getattr(loss, name) * value for name, value in parts.items())
        assert isinstance(total, Tensor)
        return total, outputs

    def sample(self) -> None:
        """Look at how much memory is taken."""
        host, device = resident()
        most = None if device is None else max(device, self.peaks[1] or 0.0)
        self.peaks = max(host, self.peaks[0]), most

    def means(self) -> dict[str, float]:
        """Return the mean of every part since the last call."""
        means = {f"{name}_loss": sum(losses) / len(losses) for name, losses in self.parts.items()}
        self.parts.clear()
        return means


class Budget(TrainerCallback):
    """How much of steps or minutes is spent; time that went into `aside` does not count."""

    def __init__(self, lesson: DistillationLoss, steps: int, minutes: float | None):
        self.lesson, self.steps, self.minutes = lesson, steps, minutes
        self.earlier = self.apart = 0.0  # seconds of a process that was killed; of evaluations
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds of training so far."""
        return self.earlier + time.monotonic() - self.start - self.apart

    def spent(self, step: int) -> float:
        """Return the share of the budget that is spent."""
        if self.minutes is None:
            return step / self.steps
        return min(1.0, self.seconds / 60 / self.minutes)

    @contextmanager
    def aside(self):
        """Do not count what happens inside."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.apart += time.monotonic() - start

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        """Start the clock, where a killed process left it."""
        last = next((e for e in reversed(state.log_history) if "seconds" in e), {})
        self.earlier, self.apart = last.get("seconds", 0.0), 0.0
        self.lesson.tokens = int(last.get("tokens", 0))
        self.start = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        """Stop when the time is over; log in front of every checkpoint, to go on from there."""
        self.lesson.sample()
        if self.spent(state.global_step) >= 1:
            control.should_training_stop = True
        if control.should_save or control.should_training_stop:
            control.should_log = True


@contextmanager
def unwrapped(model: nn.Module) -> Generator[None]:
    """Take off what accelerate puts around `forward`: bfloat16 is for training alone."""
    around = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if around is not None:
            model.forward = around


class EvaluateDuringTraining(TrainerCallback):
    """Evaluates the student every so many steps; the curve goes into the Trainer's log."""

    def __init__(
        self,
        student: PreTrainedModel,
        every: int,
        quality: Callable[[PreTrainedModel], Mapping[str, float]],
        budget: Budget,
    ):
        self.student, self.every, self.quality, self.budget = student, every, quality, budget

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        """Evaluate in the middle of training."""
        if state.global_step % self.every == 0 and state.is_world_process_zero:
            with self.budget.aside(), unwrapped(self.student):
                metrics = dict(self.quality(self.student))
            state.log_history.append({"step": state.global_step, **metrics})


class DistillationTrainer(Trainer):
    """The Trainer with a lesson for a loss."""

    def __init__(
        self,
        model: nn.Module,
        recovery: Recipe,
        lesson: DistillationLoss,
        budget: Budget,
        **options: Any,
    ):
        self.recovery, self.lesson, self.budget = recovery, lesson, budget
        super().__init__(model, **options)  # type: ignore[arg-type]
        self.add_callback(budget)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over a batch

    def create_accelerator_and_postprocess(self) -> None:
        """Cut models on CPUs too, where shards are asked for."""
        super().create_accelerator_and_postprocess()
        if shards.in_shards():
            shards.use_shards_(self.accelerator)
            self.is_fsdp_enabled = True

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Return the loss of a batch."""
        loss, outputs = self.lesson(model, inputs)
        return (loss, outputs) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Let the rate rise for a share of the budget and fall to 0 in the rest of it."""
        warmup = self.recovery.warmup_ratio
        cosine = self.recovery.lr_scheduler_type is LrSchedulerType.cosine

        def share(step: int) -> float:
            spent = self.budget.spent(step)
            if spent < warmup:
                first = 1 / self.budget.steps  # not a step at a rate of 0
                return min(1.0, (spent + first) / warmup)
            left = max(0.0, (1 - spent) / (1 - warmup))
            return (1 - math.cos(math.pi * left)) / 2 if cosine else left

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)  # type: ignore[arg-type]
        return self.lr_scheduler

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss, and the time, to what is logged."""
        if "loss" in logs:
            logs |= self.lesson.means()
            logs |= {"seconds": round(self.budget.seconds, 2), "tokens": self.lesson.tokens}
        super().log(logs, *args, **kwargs)
