"""A small disk in memory, which only root may mount."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def tmpfs(path: Path, option: str) -> Iterator[None]:
    """Mount a tmpfs meanwhile; CalledProcessError where this user may not."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def mountable() -> bool:
    """Say whether this user may mount."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with tmpfs(Path(scratch) / "disk", "size=1m"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False
