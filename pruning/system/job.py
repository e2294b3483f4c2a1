"""What every part of a job is given: where it writes, on what it computes, what it draws from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.system.cache import Cache
from pruning.system.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Job:
    """One job: its directory, device, cache, stopwatch and seed."""

    out: Path
    device: "torch.device"
    cache: Cache
    stopwatch: Stopwatch
    seed: int
