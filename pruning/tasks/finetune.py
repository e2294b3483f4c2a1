"""Fine-tune a dense model for a task, once."""

import math
import shutil
from pathlib import Path

import torch
from torch.utils.data import Subset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from pruning.calibration.batch import digest_rows
from pruning.models.source import fingerprint
from pruning.models.weights import loaded
from pruning.results.cache import Cache
from pruning.tasks.task import Task
from pruning.tasks.training import Guard, arguments, collator, own, run

CLIP = 1.0  # largest norm of the gradient
POOL = 50  # batches whose rows are sorted by length among each other


def finetuned(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache
) -> PreTrainedModel:
    """Return the fine-tuned model, from the cache if it is there.

    While it trains, the Trainer's checkpoints are in `checkpoints/` of the cache.
    """
    examples = task.examples(tokenizer, cache)
    key = {
        "version": 2,
        "model": fingerprint(model),
        "examples": digest_rows(examples),
        "recipe": task.recipe(),
        "device": model.device.type,  # on CUDA passes are computed in bfloat16
    }
    scratch = cache.checkpoints(key)

    def build(directory: Path) -> None:
        lengths = [len(row["input_ids"]) for row in examples]
        rows = order(lengths, task.epochs, task.batch, task.seed)
        steps = math.ceil(len(rows) / task.batch)
        student = own(model)
        trainer = Trainer(
            student,
            arguments(
                scratch,
                model.device,
                steps,
                per_device_train_batch_size=task.batch,
                learning_rate=task.rate,
                warmup_steps=steps // 10,
                train_sampling_strategy="sequential",
                save_steps=task.save,
                seed=task.seed,
            ),
            data_collator=collator(model),
            train_dataset=Subset(examples, rows),  # type: ignore[arg-type]
            callbacks=[Guard("task.rate", CLIP, scratch)],
        )
        run(trainer, scratch)
        student.save_pretrained(directory)

    entry = cache.stage("finetune", key, build)
    shutil.rmtree(scratch, ignore_errors=True)
    said = f"task.rate={task.rate:g}: the fine-tuned model in {entry}"
    how = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    found = loaded(type(model), entry, said, **how)
    return found.to(model.device).eval()  # type: ignore[arg-type]


def order(lengths: list[int], epochs: float, batch: int, seed: int) -> list[int]:
    """Return the rows in the order that they are read: shuffled, alike in length within a batch.

    Every `POOL` batches of shuffled rows are sorted by length and cut into batches, which are
    shuffled again. Unlike the Trainer's sampler for this it is the same after a kill.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    for _ in range(math.ceil(epochs)):
        rows = torch.randperm(len(lengths), generator=generator)
        for pool in rows.split(POOL * batch):
            alike = sorted(pool.tolist(), key=lambda row: lengths[row])
            batches = [alike[start : start + batch] for start in range(0, len(alike), batch)]
            for index in torch.randperm(len(batches), generator=generator).tolist():
                found += batches[index]
    return found[: math.ceil(epochs * len(lengths))]
