"""One training: a student, the rows that it reads, the Trainer, and what it cost."""

import logging
import math
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Subset
from transformers import PreTrainedModel, TrainerCallback
from transformers.pytorch_utils import Conv1D

from pruning.calibration.batch import Row
from pruning.models.sites import architecture, blocks
from pruning.recovery.recovery import Lora, Precision, Training
from pruning.recovery.student import Budget, Lesson, Student, Watch
from pruning.results.environment import peaks
from pruning.tasks.finetune import order
from pruning.tasks.training import Guard, arguments, collator, run

log = logging.getLogger(__name__)

Quality = Callable[[PreTrainedModel], Mapping[str, float]]
MOST = 20_000  # steps, where time is the budget


def own(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Copy a model, with parameters that no other shares and that all can be trained."""
    copy = deepcopy(model)
    return nn.Module.to(copy, dtype=dtype).requires_grad_(True)  # type: ignore[return-value]


def train(
    recovery: Training,
    student: PreTrainedModel,
    dense: PreTrainedModel,
    rows: list[Row],
    seed: int,
    directory: Path,
    quality: Quality,
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train in place; return the logged curve and what it cost."""
    r = recovery
    steps = steps_of(r, rows)
    world = int(os.environ.get("WORLD_SIZE", 1))  # processes, each with its share of a step's rows
    read = steps * r.accumulate * r.batch * world
    taken = order([len(row["input_ids"]) for row in rows], read / len(rows), r.batch, seed)[:read]
    lesson, budget = Lesson(r.loss, dense), Budget(steps, r.minutes)
    callbacks: list[TrainerCallback] = [Guard("recovery.rate", r.clip, directory, trained)]
    if r.watch is not None:
        callbacks.append(Watch(student, r.watch, quality, budget))
    model = student if r.lora is None else adapted(student, r.lora)
    bf16 = r.precision is Precision.bfloat16 or (
        r.precision is Precision.auto and student.device.type == "cuda"
    )
    student.config.use_cache = False
    trainer = Student(
        model,
        r,
        lesson,
        budget,
        args=arguments(
            directory,
            student.device,
            steps,
            per_device_train_batch_size=r.batch,
            gradient_accumulation_steps=r.accumulate,
            activation_checkpointing=r.checkpointing,
            learning_rate=r.rate,
            weight_decay=r.weight_decay,
            bf16=bf16,
            save_steps=r.save,
            seed=seed,
            train_sampling_strategy="sequential",
        ),
        data_collator=collator(student),
        train_dataset=Subset(rows, taken),  # type: ignore[arg-type]
        callbacks=callbacks,
    )
    run(trainer, directory)
    if isinstance(model, PeftModel):
        model.merge_and_unload()  # in place: the student is whole again
    curve = [e for e in trainer.state.log_history if "train_runtime" not in e]
    host, device = peaks()
    seconds = trainer.budget.seconds
    tokens = lesson.tokens * world  # of this process, where a killed one had begun
    cost: dict[str, Any] = {
        "kind": r.name,
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(tokens / max(1e-9, seconds - budget.earlier), 1),
        "peak_host_gib": host,
        "peak_device_gib": device,
    }
    log.info("recovery: %(steps)d steps, %(tokens)d tokens, %(tokens_per_s).0f tokens/s", cost)
    return curve, cost


def steps_of(recovery: Training, rows: list[Row]) -> int:
    """Return how many steps a budget allows."""
    r = recovery
    if r.steps is not None:
        return r.steps
    if r.minutes is not None:
        return MOST
    assert r.tokens is not None
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    return math.ceil(r.tokens / (mean * r.batch * r.accumulate))


def trained(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that are trained."""
    return [p for p in model.parameters() if p.requires_grad]


def adapted(student: PreTrainedModel, lora: Lora) -> PeftModel:
    """Put adapters beside every projection of every block; nothing else is trained."""
    within = f"{architecture(student).blocks}."
    names = [
        name
        for name, module in student.named_modules()
        if name.startswith(within) and isinstance(module, nn.Linear | Conv1D)
    ]
    assert names, f"no projection in {len(blocks(student))} blocks"
    transposed = any(isinstance(module, Conv1D) for module in student.modules())
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=names,
        fan_in_fan_out=transposed,
    )
    return get_peft_model(student, config)  # type: ignore[return-value, arg-type]
