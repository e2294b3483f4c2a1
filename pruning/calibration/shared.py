"""Moments of several processes: `<calibration.launcher> -m pruning.calibration.worker FOLDER`.

The job leaves the model, the batches and the options in FOLDER, and waits.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pruning.calibration.calibration import Weight
from pruning.data.batch import Batch
from pruning.data.row_files import load_rows, save_rows
from pruning.models import checkpoint
from pruning.models.sites import Kind, Site
from pruning.system.processes import run_in_processes

Given = tuple[PreTrainedModel, list[Batch], Weight, list[Site], bool]  # what `collect` is given
TENSORS = ("ids", "mask", "types")  # of a batch


def collect_in_processes(launcher: str, given: Given, directory: Path, drops: bool) -> None:
    """Start the processes, and wait until the first one has written the moments of all blocks.

    With `drops` it leaves out those of held-out tokens. ValueError where the command fails. The
    model is in memory whole.
    """
    model = given[0]
    folder = directory / "given"
    checkpoint.save(model, None, folder / "model", "")
    _write(given, folder, drops)
    run_in_processes("calibration.launcher", launcher, "pruning.calibration.worker", folder)
    shutil.rmtree(folder)


def _write(given: Given, folder: Path, drops: bool) -> None:
    """Write all but the model, and how that is loaded."""
    model, batches, weight, sites, in_bfloat16 = given
    rows = [
        {name: tensor for name in TENSORS if (tensor := getattr(batch, name)) is not None}
        for batch in batches
    ]
    save_rows(rows, folder / "batches.safetensors")
    options = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "attention": model.config._attn_implementation,
        "held_out": [batch.held_out for batch in batches],
        "weight": weight,
        "sites": [asdict(site) for site in sites],
        "in_bfloat16": in_bfloat16,
        "drops": drops,
    }
    (folder / "options.json").write_text(json.dumps(options))


def read(folder: Path) -> tuple[dict[str, Any], list[Batch], tuple[Weight, list[Site], bool]]:
    """Return how the model is loaded, the batches, and what else `collect` is given."""
    options = json.loads((folder / "options.json").read_text())
    rows = load_rows(folder / "batches.safetensors")
    batches = [
        Batch(row["ids"], row["mask"], held_out, row.get("types"))
        for row, held_out in zip(rows, options["held_out"], strict=True)
    ]
    sites = [Site(**site | {"kind": Kind(site["kind"])}) for site in options["sites"]]
    return options, batches, (Weight(options["weight"]), sites, options["in_bfloat16"])
