"""Jobs at the same time: many may compute on a device, none while another one times on it.

Two files per device and user, locked by `flock`, which a process that dies loses. Computing jobs
share the lock on `device`; one that times holds it alone. It holds `gate` meanwhile, and the others
look at the gate between two steps of whatever they do (`rest`), so nobody waits for a whole stage.
A process that waits for another one's finished stage (`waiting`) leaves its share to those that
time; else the two could wait for one another.

filelock has no shared lock that the system releases when a process is killed: its ReadWriteLock
stands on SQLite, its SoftReadWriteLock on files that outlive their owner. Hence `flock` itself.
"""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    """Hold an exclusive lock on `path`; a process that dies loses it, so no stale lock remains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not _taken(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            with waiting():
                _wait(file, fcntl.LOCK_EX, f"another job, which works at {path.with_suffix('')}")
        yield


@contextmanager
def free(path: Path) -> Generator[bool, None, None]:
    """Hold the lock on `path` if nobody else does; say whether it is held."""
    with path.open("w") as file:
        yield _taken(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class DeviceLock:
    """This process's share of a device."""

    def __init__(self, device: "torch.device"):
        where = f"pruning-{os.getuid()}-{str(device).replace(':', '-')}"
        if device.type == "cuda":  # jobs that see one GPU each all call it cuda:0
            where += f"-of-{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}"
        folder = Path(tempfile.gettempdir())
        self.device = (folder / f"{where}.lock").open("w")
        self.gate = (folder / f"{where}.gate").open("w")

    def share(self) -> None:
        """Wait until nobody times, and compute."""
        if not _taken(self.gate, fcntl.LOCK_SH | fcntl.LOCK_NB):
            _wait(self.gate, fcntl.LOCK_SH, "another job, which times something on this device")
        fcntl.flock(self.device, fcntl.LOCK_SH)
        fcntl.flock(self.gate, fcntl.LOCK_UN)

    def leave(self) -> None:
        """Compute no longer."""
        fcntl.flock(self.device, fcntl.LOCK_UN)

    @contextmanager
    def alone(self) -> Generator[None, None, None]:
        """Wait until nobody computes or times, and keep it so."""
        fcntl.flock(self.gate, fcntl.LOCK_EX)
        try:
            if not _taken(self.device, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _wait(self.device, fcntl.LOCK_EX, "other jobs to rest, to time something alone")
            yield
        finally:
            self.leave()
            fcntl.flock(self.gate, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give up all locks."""
        self.device.close()
        self.gate.close()


_mine: list[DeviceLock] = []  # of this process, while a job of it computes; a lock is the process's


@contextmanager
def computing_on(device: "torch.device") -> Generator[None, None, None]:
    """Compute on a device together with other jobs of this user, giving way to those that time."""
    turn = DeviceLock(device)
    turn.share()
    _mine.append(turn)
    try:
        yield
    finally:
        _mine.remove(turn)
        turn.close()


@contextmanager
def waiting() -> Generator[None, None, None]:
    """Let others time on the device of this process meanwhile."""
    mine = _mine.copy()
    _mine.clear()
    for turn in mine:
        turn.leave()
    try:
        yield
    finally:
        for turn in mine:
            turn.share()
        _mine.extend(mine)


def rest() -> None:
    """Let others time now, if somebody waits for it."""
    for turn in _mine:
        if _taken(turn.gate, fcntl.LOCK_SH | fcntl.LOCK_NB):
            fcntl.flock(turn.gate, fcntl.LOCK_UN)
        else:
            turn.leave()
            turn.share()


@contextmanager
def exclusive(device: "torch.device") -> Generator[None, None, None]:
    """Let no other job of this user compute or time anything on the device meanwhile."""
    with waiting():
        turn = DeviceLock(device)
        try:
            with turn.alone():
                yield
        finally:
            turn.close()


_cards: list[IO[str]] = []  # open while this process lives, and so locked


@cache
def claim_gpu(count: int) -> str:
    """Return which of `count` GPUs is this worker's, and no other's of its sweep, while it lives.

    Of those in CUDA_VISIBLE_DEVICES, where that is set. A worker of a launcher runs job after job
    and stays on the GPU that it used first, whatever CUDA_VISIBLE_DEVICES says later, so that a GPU
    goes with a worker and not with a job. Waits for the end of another where all are taken.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(count))) if visible is None else visible.split(",")
    if not 0 < count <= len(names):
        raise ValueError(
            f"hydra.launcher.n_jobs={count} must be a number of GPUs"
            + ("" if visible is None else f", at most the {len(names)} of CUDA_VISIBLE_DEVICES")
        )
    said, sweep = False, f"pruning-{os.getuid()}-sweep-{os.getppid()}"
    while True:
        for name in map(str.strip, names[:count]):
            path = Path(tempfile.gettempdir()) / f"{sweep}-{name.replace('/', '-')}.lock"
            file = path.open("w")
            if _taken(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _cards.append(file)
                return name
            file.close()
        if not said:
            log.info("waiting for one of %s GPUs: other workers have them all", count)
            said = True
        time.sleep(0.2)


def _wait(file: IO[str], how: int, what: str) -> None:
    """Take a lock when others give it up; say so before, and after a wait of seconds."""
    log.info("waiting for %s", what)
    start = time.perf_counter()
    fcntl.flock(file, how)
    if (seconds := time.perf_counter() - start) >= 1:
        log.info("going on, after a wait of %.0f s", seconds)


def _taken(file: IO[str], how: int) -> bool:
    """Take a lock if that needs no waiting; say whether it was taken."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True
