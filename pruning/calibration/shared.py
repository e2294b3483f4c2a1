"""Moments of several processes: `<calibration.launcher> -m pruning.calibration.worker FOLDER`.

The job leaves the model, the batches and the options in FOLDER, and waits.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pruning.calibration.calibration import Weight
from pruning.data.batch import Batch
from pruning.models import checkpoint
from pruning.models.sites import Kind, Site
from pruning.models.streamed import is_streamed
from pruning.system.processes import run_in_processes

Given = tuple[PreTrainedModel, list[Batch], Weight, list[Site], bool]  # what `collect` is given
TENSORS = ("ids", "mask", "types")  # of a batch


def collect_in_processes(launcher: str, given: Given, directory: Path) -> None:
    """Start the processes, and wait until the first one has written the moments of all blocks.

    ValueError where the command fails, and for a model whose blocks stay in their files.
    """
    model = given[0]
    if is_streamed(model):
        raise ValueError(
            f"calibration.launcher={launcher!r} gives each process a whole model, and this one "
            "stays in its files: give null, or model.resident=true"
        )
    folder = directory / "given"
    checkpoint.save(model, None, folder / "model", "")
    _write(given, folder)
    run_in_processes("calibration.launcher", launcher, "pruning.calibration.worker", folder)
    shutil.rmtree(folder)


def _write(given: Given, folder: Path) -> None:
    """Write all but the model, and how that is loaded."""
    model, batches, weight, sites, in_bfloat16 = given
    tensors = {
        f"{index}.{name}": tensor.contiguous()
        for index, batch in enumerate(batches)
        for name in TENSORS
        if (tensor := getattr(batch, name)) is not None
    }
    save_file(tensors, folder / "batches.safetensors")
    options = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "attention": model.config._attn_implementation,
        "held_out": [batch.held_out for batch in batches],
        "weight": weight,
        "sites": [asdict(site) for site in sites],
        "in_bfloat16": in_bfloat16,
    }
    (folder / "options.json").write_text(json.dumps(options))


def read(folder: Path) -> tuple[dict[str, Any], list[Batch], tuple[Weight, list[Site], bool]]:
    """Return how the model is loaded, the batches, and what else `collect` is given."""
    options = json.loads((folder / "options.json").read_text())
    tensors = load_file(folder / "batches.safetensors")
    batches = [
        Batch(**{name: tensors.get(f"{index}.{name}") for name in TENSORS}, held_out=held_out)  # type: ignore[arg-type]
        for index, held_out in enumerate(options["held_out"])
    ]
    sites = [Site(**site | {"kind": Kind(site["kind"])}) for site in options["sites"]]
    return options, batches, (Weight(options["weight"]), sites, options["in_bfloat16"])
