"""Train in several processes: `<recovery.launcher> -m pruning.recovery.worker FOLDER`.

The job leaves models, rows and options in FOLDER and waits; each process of torchrun or of
`accelerate launch` trains on its share of every batch, and the first one writes what came of it.
"""

import json
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from pruning.data.row_files import load_rows, save_rows
from pruning.models import checkpoint
from pruning.recovery import shards
from pruning.recovery.recipe import Recipe
from pruning.recovery.train import Distillation, train
from pruning.system.device_locks import locked
from pruning.system.files import to_json
from pruning.system.processes import run_in_processes
from pruning.tasks.training import own, save_parameters


def train_in_processes(
    recovery: Recipe, given: Distillation, scratch: Path, directory: Path
) -> None:
    """Start the processes, and wait until the first one has written `directory`.

    ValueError where the command fails.
    """
    assert recovery.launcher is not None
    folder, dense = scratch / "given", given.teacher
    checkpoint.save(given.student, None, folder / "pruned", "")
    checkpoint.save(dense, None, folder / "dense", "")
    save_rows(given.rows, folder / "rows.safetensors")
    device, dtype = dense.device.type, str(dense.dtype).removeprefix("torch.")
    options = {"seed": given.seed, "device": device, "dtype": dtype, "recovery": recovery.plain()}
    options |= {"attention": dense.config._attn_implementation}
    options |= {"scratch": str(scratch), "directory": str(directory)}
    (folder / "options.json").write_text(json.dumps(options))
    run_in_processes("recovery.launcher", recovery.launcher, "pruning.recovery.worker", folder)


def main(folder: Path) -> None:
    """Train as one of the processes."""
    logging.basicConfig(level=logging.WARNING)
    transformers.logging.set_verbosity_error()
    given = json.loads((folder / "options.json").read_text())
    recovery = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), given["recovery"]))
    assert isinstance(recovery, Recipe)
    device = torch.device(given["device"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    scratch, first = Path(given["scratch"]), shards.is_first()
    dtype, attention = getattr(torch, given["dtype"]), given["attention"]
    how = dtype, device, attention
    dense = shards.load(folder / "dense", *how)
    student = own(shards.load(folder / "pruned", *how))
    rows = load_rows(folder / "rows.safetensors")
    learning = Distillation(student, dense, rows, given["seed"], device)
    # processes of a job that was killed may still be at it
    with locked(scratch / "training.lock") if first else nullcontext():
        curve, cost = train(recovery, learning, scratch, lambda model: {})
    if first:
        write(student, curve, cost, Path(given["directory"]))
    if torch.distributed.is_initialized():  # or its threads may abort a process that ends
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def write(student: PreTrainedModel, curve: list, cost: dict, directory: Path) -> None:
    """Write what training gave."""
    save_parameters(student, directory)
    (directory / "curve.json").write_text(to_json({"curve": curve, "cost": cost}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
