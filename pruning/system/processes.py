"""Processes that share a stage's work: a command such as `torchrun` starts a module of ours."""

import os
import shlex
import subprocess
from pathlib import Path


def run_in_processes(option: str, launcher: str, module: str, folder: Path) -> None:
    """Run `<launcher> -m <module> <folder>`, and wait for its end.

    ValueError, which begins with the option that gave the command, where that fails.
    """
    command = [*shlex.split(launcher), "-m", module, str(folder)]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False)
    except (FileNotFoundError, PermissionError) as error:
        raise ValueError(
            f"{option}={launcher!r} is no command here ({error}): give one such as "
            '"torchrun --nproc-per-node 2", or null'
        ) from error
    if done.returncode != 0:
        raise ValueError(
            f"{option}={launcher!r} ended with code {done.returncode}: what its processes said is "
            "above; the same command goes on from what is done"
        )
