"""One training: a student, the rows that it reads, the Trainer, and what it cost."""

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.pytorch_utils import Conv1D

from pruning.data.batch import Row
from pruning.models.sites import architecture, blocks
from pruning.recovery import shards
from pruning.recovery.recipe import Lora, Recipe
from pruning.recovery.student import (
    Budget,
    DistillationLoss,
    DistillationTrainer,
    EvaluateDuringTraining,
)
from pruning.tasks.finetune import order
from pruning.tasks.training import UNBOUNDED, NonFiniteGuard, arguments, collator, run

log = logging.getLogger(__name__)

Quality = Callable[[PreTrainedModel], Mapping[str, float]]
LOGGED = 1000  # steps that the logged points are spread over, where time is the budget


@dataclass(frozen=True)
class Distillation:
    """Who learns what from whom: a training without its recipe."""

    student: PreTrainedModel
    teacher: PreTrainedModel  # the dense model
    rows: list[Row]
    seed: int
    device: torch.device | None = None  # None: where the student is, which may be the host yet


class RepeatedShuffle(Dataset[Row]):
    """Rows in the order that they are read: shuffled anew, as often as the steps ask for."""

    def __init__(self, rows: list[Row], count: int, step: int, seed: int):
        self.rows, self.count, self.step, self.seed = rows, count, step, seed
        self.lengths = [len(row["input_ids"]) for row in rows]
        self.epoch, self.order = -1, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        epoch, place = divmod(index, len(self.rows))
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = order(self.lengths, 1, self.step, self.seed + epoch)
        return self.rows[self.order[place]]


def train(
    recovery: Recipe, given: Distillation, directory: Path, quality: Quality
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train the student in place; return the logged curve and what it cost."""
    student, rows, seed = given.student, given.rows, given.seed
    device, directory = given.device or student.device, shards.checkpoints(directory)
    if shards.in_shards():
        shards.prepare_(student)
    set_seed(seed)  # adapters begin at random
    r, world = recovery, int(os.environ.get("WORLD_SIZE", 1))  # processes that share every batch
    if r.batch_size % world:
        raise ValueError(
            f"recovery.batch_size={r.batch_size} cannot be shared by the {world} processes of "
            "recovery.launcher: give a multiple"
        )
    steps = steps_of(r, rows)
    in_bfloat16 = r.precision.is_bfloat16(device)
    lesson = DistillationLoss(r.loss, given.teacher, in_bfloat16)
    budget = Budget(lesson, steps, r.minutes)
    callbacks: list[TrainerCallback] = [
        NonFiniteGuard("recovery.learning_rate", r.max_grad_norm, directory, trained)
    ]
    if r.eval_steps is not None:
        callbacks.append(EvaluateDuringTraining(student, r.eval_steps, quality, budget))
    model = student if r.lora is None else adapted(student, r.lora)
    student.config.use_cache = False
    trainer = DistillationTrainer(
        model,
        r,
        lesson,
        budget,
        args=arguments(
            directory,
            device,
            steps,
            logging_steps=max(1, min(steps, LOGGED) // 50),
            per_device_train_batch_size=r.batch_size // world,
            gradient_accumulation_steps=r.gradient_accumulation_steps,
            activation_checkpointing=r.gradient_checkpointing,
            learning_rate=r.learning_rate,
            weight_decay=r.weight_decay,
            bf16=in_bfloat16,
            save_steps=r.save_steps,
            seed=seed,
            train_sampling_strategy="sequential",
        ),
        data_collator=collator(student),
        train_dataset=RepeatedShuffle(
            rows,
            steps * r.gradient_accumulation_steps * r.batch_size,
            r.gradient_accumulation_steps * r.batch_size,
            seed,
        ),
        callbacks=callbacks,
    )
    if trainer.is_deepspeed_enabled:
        raise ValueError(
            f"recovery.launcher={r.launcher!r} starts DeepSpeed, which is not supported: give "
            "accelerate launch --use_fsdp for shards, or --multi_gpu for whole models"
        )
    if trainer.is_fsdp_enabled:
        shards.cut_(lesson.teacher, trainer.accelerator)
    run(trainer, directory)
    if trainer.is_fsdp_enabled:
        shards.gather_(model)
    if isinstance(model, PeftModel):
        model.merge_and_unload()  # in place: the student is whole again
    curve = [e for e in trainer.state.log_history if "train_runtime" not in e]
    tokens, seconds = lesson.tokens * world, budget.seconds
    cost: dict[str, Any] = {
        "kind": r.name,
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(tokens / max(1e-9, seconds), 1),
        "peak_host_gib": lesson.peaks[0],
        "peak_device_gib": lesson.peaks[1],
    }
    log.info("recovery: %(steps)d steps, %(tokens)d tokens, %(tokens_per_s).0f tokens/s", cost)
    return curve, cost


def steps_of(recovery: Recipe, rows: list[Row]) -> int:
    """Return how many steps a budget allows."""
    r = recovery
    if r.steps is not None:
        return r.steps
    if r.minutes is not None:
        return UNBOUNDED
    assert r.tokens is not None
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    return math.ceil(r.tokens / (mean * r.batch_size * r.gradient_accumulation_steps))


def trained(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that are trained."""
    return [p for p in model.parameters() if p.requires_grad]


def adapted(student: PreTrainedModel, lora: Lora) -> PeftModel:
    """Put adapters beside projections of every block; nothing else is trained.

    ValueError where `lora.modules` names none.
    """
    path = architecture(student).blocks
    there = {
        f"{path}.{index}.{name}": name
        for index, block in enumerate(blocks(student))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    names = [whole for whole, name in there.items() if fnmatch(name, lora.modules)]
    if not names:
        raise ValueError(
            f"recovery.lora.modules={lora.modules!r} fits no projection: there are "
            f"{', '.join(dict.fromkeys(there.values()))}"
        )
    transposed = any(isinstance(module, Conv1D) for module in student.modules())
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=names,
        fan_in_fan_out=transposed,
    )
    return get_peft_model(student, config)  # type: ignore[return-value, arg-type]
