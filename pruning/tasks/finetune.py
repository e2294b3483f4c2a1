"""Fine-tune a dense model for a task, once."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import PreTrainedModel, Trainer

from pruning.data.batch import Row, digest_rows
from pruning.models.source import fingerprint
from pruning.models.weights import loaded
from pruning.system.cache import Cache
from pruning.tasks.training import NonFiniteGuard, arguments, collator, own, run

CLIP = 1.0  # largest norm of the gradient
POOL = 50  # batches whose rows are sorted by length among each other


@dataclass
class Schedule:
    """How long a model is trained, and in which steps."""

    epochs: float
    batch_size: int  # rows per step
    learning_rate: float  # learning rate: rises for a tenth of the steps, then falls to 0
    save_steps: int  # steps between checkpoints, from which a killed run goes on
    seed: int  # of the order of the rows


def fine_tune(
    model: PreTrainedModel,
    examples: list[Row],
    schedule: Schedule,
    recipe: dict[str, Any],
    cache: Cache,
) -> PreTrainedModel:
    """Return the fine-tuned model, from the cache if it is there.

    `recipe` is what it depends on beside its rows. While it trains, the Trainer's checkpoints are
    in `checkpoints/` of the cache.
    """
    s = schedule
    key = {
        "version": 2,
        "model": fingerprint(model),
        "examples": digest_rows(examples),
        "recipe": recipe,
        "device": model.device.type,  # on CUDA passes are computed in bfloat16
    }
    scratch = cache.checkpoints(key)

    def build(directory: Path) -> None:
        lengths = [len(row["input_ids"]) for row in examples]
        rows = order(lengths, s.epochs, s.batch_size, s.seed)
        steps = math.ceil(len(rows) / s.batch_size)
        student = own(model)
        trainer = Trainer(
            student,
            arguments(
                scratch,
                model.device,
                steps,
                per_device_train_batch_size=s.batch_size,
                learning_rate=s.learning_rate,
                warmup_steps=steps // 10,
                train_sampling_strategy="sequential",
                save_steps=s.save_steps,
                seed=s.seed,
            ),
            data_collator=collator(model),
            train_dataset=Subset(examples, rows),  # type: ignore[arg-type]
            callbacks=[NonFiniteGuard("task.learning_rate", CLIP, scratch)],
        )
        run(trainer, scratch)
        student.save_pretrained(directory)

    entry = cache.stage("finetune", key, build)
    shutil.rmtree(scratch, ignore_errors=True)
    said = f"task.learning_rate={s.learning_rate:g}: the fine-tuned model in {entry}"
    how = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    tuned = loaded(type(model), entry, said, **how)
    return tuned.to(model.device).eval()  # type: ignore[arg-type]


def order(lengths: list[int], epochs: float, batch: int, seed: int) -> list[int]:
    """Return the rows in the order that they are read: shuffled, alike in length within a batch.

    Every `POOL` batches of shuffled rows are sorted by length and cut into batches, which are
    shuffled again. Unlike the Trainer's sampler for this it is the same after a kill.
    """
    generator = torch.Generator().manual_seed(seed)
    indices: list[int] = []
    for _ in range(math.ceil(epochs)):
        rows = torch.randperm(len(lengths), generator=generator)
        for pool in rows.split(POOL * batch):
            alike = sorted(pool.tolist(), key=lambda row: lengths[row])
            batches = [alike[start : start + batch] for start in range(0, len(alike), batch)]
            for index in torch.randperm(len(batches), generator=generator).tolist():
                indices += batches[index]
    return indices[: math.ceil(epochs * len(lengths))]
