"""The stage `recovery`: a pruned model is trained once, and goes on after a kill."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from pruning.data.batch import digest_rows
from pruning.models.source import fingerprint
from pruning.recovery.local import Reconstruction, reconstruct
from pruning.recovery.recipe import LocalRecipe, Recipe
from pruning.recovery.train import Distillation, Quality, train
from pruning.recovery.worker import train_in_processes, write
from pruning.system.cache import Cache
from pruning.system.environment import machine
from pruning.tasks.training import own


@dataclass
class Recovered:
    """A trained model, and what that took."""

    model: PreTrainedModel
    curve: list[dict[str, float]]  # by logged step
    cost: dict[str, Any]  # kind, steps, tokens, seconds, tokens_per_s, peaks of memory

    def facts(self) -> dict[str, Any]:
        """Return them as results have them."""
        return self.cost | {"curve": self.curve}


def recovered(
    recovery: Recipe,
    given: Distillation,
    cache: Cache,
    quality: Quality,
    measured: str = "",
) -> Recovered:
    """Return the trained model, from the cache if it is there; the student stays as it is.

    `quality` is what is watched, and `measured` names it. While it trains, the Trainer's
    checkpoints are in `checkpoints/` of the cache.
    """
    pruned = given.student
    key = {
        "version": 2,
        "student": fingerprint(pruned),
        "teacher": fingerprint(given.teacher) if recovery.loss.uses_teacher else None,
        "rows": digest_rows(given.rows),
        "recipe": recovery.identity(),
        "bfloat16": recovery.precision.is_bfloat16(pruned.device),
        "device": pruned.device.type,
        "watched": None if recovery.eval_steps is None else measured,
        "machine": None if recovery.minutes is None else machine(),  # how far minutes lead
        "seed": given.seed,
    }

    scratch = cache.checkpoints(key)

    def build(directory: Path) -> None:
        if recovery.launcher is not None:
            train_in_processes(recovery, given, scratch, directory)
            return
        learning = replace(given, student=own(pruned))
        write(learning.student, *train(recovery, learning, scratch, quality), directory)

    return _read(cache.stage("recovery", key, build), scratch, pruned)


def reconstructed(recipe: LocalRecipe, given: Reconstruction, cache: Cache) -> Recovered:
    """Return the reconstructed model, from the cache if it is there; the student stays as it is."""
    pruned = given.student
    key = {
        "version": 2,
        "student": fingerprint(pruned),
        "teacher": fingerprint(given.teacher),
        "batches": [batch.digest() for batch in given.batches],
        "recipe": {k: v for k, v in asdict(recipe).items() if k not in ("name", "precision")},
        "bfloat16": recipe.precision.is_bfloat16(pruned.device),
        "device": pruned.device.type,
        "seed": given.seed,
    }

    scratch = cache.checkpoints(key)

    def build(directory: Path) -> None:
        learning = replace(given, student=own(pruned))
        write(learning.student, *reconstruct(recipe, learning, scratch), directory)

    return _read(cache.stage("reconstruction", key, build), scratch, pruned)


def _read(entry: Path, scratch: Path, pruned: PreTrainedModel) -> Recovered:
    """Return what was trained, and drop the checkpoints on the way to it."""
    shutil.rmtree(scratch, ignore_errors=True)
    model = own(pruned, pruned.dtype)
    state = load_file(entry / "parameters.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])
    curve = json.loads((entry / "curve.json").read_text())
    return Recovered(model.eval(), curve["curve"], curve["cost"])
