"""Moments of several processes: `<calibration.launcher> -m pruning.calibration.worker FOLDER`.

The job leaves the model, the batches and the options in FOLDER, and waits.
"""

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pruning.calibration.calibration import Weight
from pruning.data.batch import Batch
from pruning.models import checkpoint
from pruning.models.sites import Site
from pruning.models.streamed import is_streamed
from pruning.system.processes import run_in_processes

Given = tuple[PreTrainedModel, list[Batch], Weight, list[Site], bool]  # what `collect` is given


def collect_in_processes(launcher: str, given: Given, directory: Path) -> None:
    """Start the processes, and wait until the first one has written the moments of all blocks.

    ValueError where the command fails, and for a model whose blocks stay in their files.
    """
    model, batches, *options = given
    if is_streamed(model):
        raise ValueError(
            f"calibration.launcher={launcher!r} gives each process a whole model, and this one "
            "stays in its files: give null, or model.resident=true"
        )
    folder = directory / "given"
    checkpoint.save(model, None, folder / "model", "")
    how = model.dtype, model.device, model.config._attn_implementation
    torch.save({"how": how, "batches": batches, "options": options}, folder / "given.pt")
    run_in_processes("calibration.launcher", launcher, "pruning.calibration.worker", folder)
    shutil.rmtree(folder)
