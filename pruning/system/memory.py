"""How much memory a process may still take, on the host or on a device."""

import resource
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

GROUPS = (  # what a container may take: of cgroups 2 and 1
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
LIMITS = (("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize"))


def available(device: "torch.device") -> int:
    """Return how many bytes there are on a device for this process, by all limits known."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, *_within_limits(), *_within_groups())


def _within_limits() -> list[int]:
    """Return what is left of the limits of this process."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return []
    left: list[int] = []
    for limit, field in LIMITS:
        soft, _ = resource.getrlimit(getattr(resource, limit))
        if soft != resource.RLIM_INFINITY:
            taken = int(status.partition(f"{field}:")[2].split()[0]) * 1024
            left.append(max(0, soft - taken))
    return left


def _within_groups() -> list[int]:
    """Return what is left of the limits of this process's container, if it has any."""
    left: list[int] = []
    for most in GROUPS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            left.append(max(0, int(Path(most).read_text()) - psutil.Process().memory_info().rss))
    return left
