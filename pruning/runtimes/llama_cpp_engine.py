"""llama.cpp in a process of its own, so that its assertions end no job."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary, finalize

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.runtimes.gguf_file import write_gguf
from pruning.runtimes.gguf_precision import Precision
from pruning.runtimes.workload import Workload

WORKER = Path(__file__).with_name("llama_cpp_worker.py")
SAID = 300  # characters of an engine's last words


class Engine:
    """A process that has models loaded; it ends with the last of them."""

    def __init__(self, threads: int):
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        self.unused: list[int] = []  # models to free: with the next order, never amidst one
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(threads)],  # -P: llama_cpp is not our file
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
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
        for threads, engine in [*ENGINES.items()]:
            if engine is self:
                del ENGINES[threads]
        code = self.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return self._failed(f"llama.cpp ended with {how}")

    def _failed(self, how: str) -> ValueError:
        self.said.seek(0)
        said = " ".join(self.said.read().decode(errors="replace").split())[-SAID:]
        return ValueError(
            f"runtime=llama_cpp: {how} ({said or 'without a word'}): give another "
            "runtime.precision, or another runtime"
        )


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


ENGINES: "WeakValueDictionary[int, Engine]" = WeakValueDictionary()  # by their threads


class Loaded:
    """A model in the engine, without a tokenizer; no file of it is left."""

    def __init__(self, model: PreTrainedModel, precision: Precision, written: Path | None = None):
        threads = torch.get_num_threads()
        self.engine = ENGINES.get(threads) or Engine(threads)
        ENGINES[threads] = self.engine
        with tempfile.TemporaryDirectory(prefix="pruning-gguf-") as directory:
            if (path := written) is None:
                path = Path(directory) / "model.gguf"
                write_gguf(model, None, path, precision)
            self.number = self.engine.ask("load", path=str(path))["number"]
        finalize(self, self.engine.unused.append, self.number)

    def prepare(self, work: Workload) -> None:
        """Say what a call does."""
        of_work = {
            "phase": str(work.phase),
            "batch": work.batch,
            "sequence": work.sequence,
            "tokens": work.tokens,
        }
        self.engine.ask("prepare", number=self.number, work=of_work)

    def __call__(self) -> None:
        """Do it once, and wait for the end."""
        self.engine.ask("call", number=self.number)

    def logits(self, ids: Tensor, exact: bool = False) -> Tensor:
        """Return the logits of all tokens [rows tokens vocabulary].

        By default attention is computed as it is served, in float16 and at once; else exactly.
        """
        return self.engine.ask("logits", number=self.number, ids=ids.tolist(), exact=exact)
