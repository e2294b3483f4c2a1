"""An engine in a process of its own, so that its end ends no job: an order per line of JSON."""

import json
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from typing import IO, Any
from weakref import WeakValueDictionary, finalize

import numpy as np
import torch

SAID = 300  # characters of an engine's last words


@dataclass(frozen=True)
class Worker:
    """What is started, and how errors name it."""

    runtime: str  # in the config
    engine: str  # by its own name
    remedy: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()  # beside this process's own

    def process(self) -> "Engine":
        """Return a process that runs, the one that was started before if there is one."""
        engine = ENGINES.get(self)
        if engine is None or engine.dead:
            ENGINES[self] = engine = Engine(self)
        return engine


class Engine:
    """A process that has models loaded; it ends with the last of them."""

    def __init__(self, worker: Worker):
        self.worker, self.dead = worker, False
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        self.unused: list[int] = []  # models to free: with the next order, never amidst one
        self.process = subprocess.Popen(
            worker.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=os.environ | dict(worker.environment),
        )
        finalize(self, _end, self.process, self.said)

    def ask(self, do: str, **values: Any) -> Any:
        """Give an order and wait for its answer; ValueError with the engine's words if it fails."""
        pipes: Any = self.process
        free, self.unused[:] = [*self.unused], []
        order = json.dumps({"do": do, "free": free, **values})
        try:
            pipes.stdin.write(order.encode() + b"\n")
            pipes.stdin.flush()
            line = pipes.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise self._died()
        answer = json.loads(line)
        if "error" in answer:
            raise self._failed(answer["error"])
        if "shape" in answer:
            count = int(np.prod(answer["shape"]))
            content = np.frombuffer(pipes.stdout.read(4 * count), np.float32)
            return torch.from_numpy(content.reshape(answer["shape"]).copy())
        return answer

    def _died(self) -> ValueError:
        self.dead = True
        code = self.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return self._failed(f"{self.worker.engine} ended with {how}")

    def _failed(self, how: str) -> ValueError:
        self.said.seek(0)
        said = " ".join(self.said.read().decode(errors="replace").split())[-SAID:]
        said, worker = said or "without a word", self.worker
        return ValueError(f"runtime={worker.runtime}: {how} ({said}): {worker.remedy}")


def _end(process: subprocess.Popen, said: IO[bytes]) -> None:
    """Let a process end by itself, as its orders do."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            continue
    process.wait()
    said.close()


def running() -> list[int]:
    """Return the ids of the processes of all engines that run."""
    return [engine.process.pid for engine in ENGINES.values() if not engine.dead]


ENGINES: "WeakValueDictionary[Worker, Engine]" = WeakValueDictionary()  # by what they run
