"""What the jobs of one command tell it when they end, whatever process they ran in."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "PRUNING_JOURNAL"  # in the environment, which the processes of all launchers inherit


@dataclass
class JobOutcome:
    """How a job ended."""

    directory: str
    failure: str = ""  # one line; empty where there is a result


@contextmanager
def journal() -> Iterator[Path]:
    """Open a file for the jobs that are started meanwhile; it goes when the command ends."""
    handle, name = tempfile.mkstemp(prefix="pruning-", suffix=".jsonl")
    os.close(handle)
    os.environ[VARIABLE] = name
    try:
        yield Path(name)
    finally:
        del os.environ[VARIABLE]
        Path(name).unlink(missing_ok=True)


def record(ended: JobOutcome) -> bool:
    """Tell the command that started this job how it ended; return whether it could be told."""
    path = os.environ.get(VARIABLE)
    if path and Path(path).exists():  # not on another machine that has a disk of its own
        with suppress(OSError), open(path, "a") as file:  # that disk may be full
            file.write(json.dumps(asdict(ended)) + "\n")
            file.flush()
            return True
    return False


def read(path: Path) -> list[JobOutcome]:
    """Return how jobs ended, in that order; a line that was cut short is left out."""
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [JobOutcome(**json.loads(line)) for line in lines]
