"""What all trainings by transformers' Trainer share: batches, a guard, what to go on from."""

import json
import logging
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from pruning.data.batch import Batch, Row
from pruning.system.device_locks import rest

log = logging.getLogger(__name__)

UNBOUNDED = 10**7  # steps, where time is the budget
IGNORED = -100  # the label of a token that is not predicted


def collator(model: PreTrainedModel) -> Callable[[list[Row]], Row]:
    """Return what pads rows into a batch; without labels of a task it is the next tokens."""

    def collate(rows: list[Row]) -> Row:
        batch = Batch.from_rows(rows, model.config.pad_token_id or 0)
        next_tokens = {"labels": batch.ids.masked_fill(batch.mask == 0, IGNORED)}
        return batch.inputs(batch.ids.device) | (batch.labels or next_tokens)

    return collate


def own(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Copy a model, with parameters that no other shares and that all can be trained.

    In float32, since most steps are lost in bfloat16. Buffers keep their type: positions are
    rotated in float32 whatever the weights are. So do modules that see to it themselves.
    """
    copy = deepcopy(model)
    copy._apply(lambda t: t.to(dtype) if isinstance(t, nn.Parameter) else t)
    return copy.requires_grad_(True)


def arguments(
    directory: Path, device: torch.device, steps: int, **options: Any
) -> TrainingArguments:
    """Return the Trainer's arguments: some 50 logged points, two checkpoints kept, no reports.

    Passes are computed in bfloat16 on CUDA, unless `options` say otherwise.

    ValueError for a CUDA device that the Trainer would not take: it takes the first.
    """
    if device.type == "cuda" and device.index and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"hardware.device={device}: training takes the first device that is visible; give "
            f"hardware.device=cuda, and CUDA_VISIBLE_DEVICES={device.index} in the environment"
        )
    options = {"logging_steps": max(1, steps // 50), "bf16": device.type == "cuda"} | options
    made = TrainingArguments(
        output_dir=str(directory),
        max_steps=steps,
        max_grad_norm=0.0,  # NonFiniteGuard clips
        logging_nan_inf_filter=False,
        save_total_limit=2,
        report_to=[],
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **options,
    )
    if made.n_gpu > 1:  # of one process: the loss is computed on one device
        made._n_gpu = 1
    return made


def save_parameters(model: nn.Module, directory: Path) -> None:
    """Write what was trained as parameters.safetensors."""
    state = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    save_file(state, directory / "parameters.safetensors")


class NonFiniteGuard(TrainerCallback):
    """Clips the gradient of the weights, and stops before a step that is not finite."""

    def __init__(
        self,
        option: str,
        clip: float,
        directory: Path,
        weights: Callable[[nn.Module], list[nn.Parameter]] = lambda model: [*model.parameters()],
    ):
        self.option, self.clip, self.directory, self.weights = option, clip, directory, weights

    def on_pre_optimizer_step(self, args, state, control, model: Any = None, **kwargs: Any) -> None:
        """Look at all gradients; ValueError where one is NaN or infinite."""
        norm = nn.utils.clip_grad_norm_(self.weights(model), self.clip)
        others = [p.grad for p in model.parameters() if p.grad is not None]
        if not (norm.isfinite() and all(grad.isfinite().all() for grad in others)):
            kept = last_checkpoint(self.directory)
            good = f"The last good checkpoint is {kept}" if kept else "No checkpoint was there yet"
            raise ValueError(
                f"{self.option}={args.learning_rate:g}: training left the finite numbers at step "
                f"{state.global_step + 1}; lower it. {good}"
            )


class Progress(ProgressCallback):
    """The Trainer's bar without the lines that it writes above it; the result has the curves.

    Between two steps other jobs may time something on the device.
    """

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        """Open the bar; where time is the budget, it counts towards no number."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None and state.max_steps >= UNBOUNDED:
            self.training_bar.total = None
            self.training_bar.refresh()

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        """Move the bar, and give way."""
        super().on_step_end(args, state, control, **kwargs)
        rest()

    def on_log(self, args, state, control, logs=None, **kwargs: Any) -> None:
        """Write nothing."""


def run(trainer: Trainer, directory: Path) -> None:
    """Train with a quiet bar, from the last checkpoint in `directory` on if there is one."""
    for loud in (ProgressCallback, PrinterCallback):  # the second where other bars are off
        trainer.remove_callback(loud)
    trainer.add_callback(Progress)
    trainer.train(resume_from_checkpoint=last_checkpoint(directory))


def last_checkpoint(directory: Path) -> str | None:
    """Return the newest checkpoint that was written whole: its state is written last."""
    checkpoints = {}
    for path in directory.glob("checkpoint-*/trainer_state.json"):
        try:
            checkpoints[json.loads(path.read_text())["global_step"]] = path.parent
        except (ValueError, KeyError):
            log.warning("%s was cut short and is not used", path.parent)
    return str(checkpoints[max(checkpoints)]) if checkpoints else None
