"""The machine and the versions that numbers depend on, and how much memory they took."""

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pruning.system.files import is_dict

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "lm_eval", "numpy", "hydra-core")
GIB = 2**30


def forget_peaks() -> None:
    """Let peaks be those from now on, where the system can: jobs of a sweep share a process."""
    import torch

    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peaks() -> tuple[float, float | None]:
    """Return the peaks of this process in GiB: resident, and allocated on CUDA if there."""
    import torch

    try:
        status = Path("/proc/self/status").read_text()
        host = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / GIB
    except (OSError, IndexError):  # not Linux: since the process began, in bytes on macOS
        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
    return host, torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None


def resident() -> tuple[float, float | None]:
    """Return what this process takes now in GiB: resident, and allocated on CUDA if there."""
    import torch

    device = torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else None
    return psutil.Process().memory_info().rss / GIB, device


def environment() -> dict[str, Any]:
    """Return what numbers depend on besides the config; no host names and no paths.

    Keys `commit` and `dirty` are null where this package does not run from a git checkout.
    """
    return {**machine(), **checkout()}


def machine() -> dict[str, Any]:
    """Return what times depend on besides models and config: the machine and the versions."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
    }


def version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def checkout() -> dict[str, Any]:
    """Return the git commit this package runs from and whether tracked files differ from it."""

    def git(*command: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(
            ["git", *command], cwd=here, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not just inside another checkout
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def flatten(nested: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Walk the values of nested dictionaries, each with its path, `("packages.torch", "2")`."""
    for key, value in nested.items():
        if is_dict(value):
            yield from flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def differences(environments: Sequence[dict[str, Any]]) -> dict[str, list[str | None]]:
    """Return by path, where environments differ, the value that each has, as text.

    None where it does not tell: an older result has fewer keys, which is no difference.
    """
    flat = [dict(flatten(environment)) for environment in environments]
    differing: dict[str, list[str | None]] = {}
    for key in dict.fromkeys(key for one in flat for key in one):
        values = [str(one[key]) if key in one else None for one in flat]
        if len({value for value in values if value is not None}) > 1:
            differing[key] = values
    return differing
