"""Collect moments as one of the processes that share the batches.

Each brings its share through a whole model of its own, the sums of a block are added over them, and
the first one writes what comes of it.
"""

import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers
from torch import distributed

from pruning.calibration.moments import Moments
from pruning.calibration.shared import read
from pruning.models import checkpoint
from pruning.system.device_locks import locked
from pruning.system.progress import console


def main(folder: Path) -> None:
    """Collect as one of the processes."""
    logging.basicConfig(level=logging.WARNING)
    transformers.logging.set_verbosity_error()
    how, batches, options = read(folder)
    dtype, device = getattr(torch, how["dtype"]), torch.device(how["device"])
    rank, world = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    console.quiet = rank > 0
    model = checkpoint.load(folder / "model", dtype, device, how["attention"])
    # processes of a job that was killed may still be at it
    with locked(folder.parent / "moments.lock") if rank == 0 else nullcontext():
        if world > 1:  # all look at the same blocks that are done
            distributed.barrier()
        share = batches[rank::world]
        Moments(folder.parent, how["drops"]).fill(model, share, *options, writes=rank == 0)
        if world > 1:  # or its threads may abort a process that ends
            distributed.barrier()
            distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
