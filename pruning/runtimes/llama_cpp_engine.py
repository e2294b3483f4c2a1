"""llama.cpp in a process of its own, so that its assertions end no job."""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from weakref import finalize

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.runtimes.gguf_file import write_gguf
from pruning.runtimes.gguf_precision import Precision
from pruning.runtimes.worker_process import Worker
from pruning.runtimes.workload import Workload

SCRIPT = Path(__file__).with_name("llama_cpp_worker.py")


def worker() -> Worker:
    """Return the process that runs models on as many threads as PyTorch has."""
    threads = str(torch.get_num_threads())
    return Worker(
        runtime="llama_cpp",
        engine="llama.cpp",
        remedy="give another runtime.precision, or another runtime",
        command=(sys.executable, "-P", str(SCRIPT), threads),  # -P: llama_cpp is not our file
        environment=(("GGML_NO_BACKTRACE", "1"),),
    )


class Loaded:
    """A model in the engine, without a tokenizer; no file of it is left."""

    def __init__(self, model: PreTrainedModel, precision: Precision, written: Path | None = None):
        self.engine = worker().process()
        with tempfile.TemporaryDirectory(prefix="pruning-gguf-") as directory:
            if (path := written) is None:
                path = Path(directory) / "model.gguf"
                write_gguf(model, None, path, precision)
            self.number = self.engine.ask("load", path=str(path))["number"]
        finalize(self, self.engine.unused.append, self.number)

    def prepare(self, work: Workload) -> None:
        """Say what a call does."""
        self.engine.ask("prepare", number=self.number, work=asdict(work))

    def __call__(self) -> None:
        """Do it once, and wait for the end."""
        self.engine.ask("call", number=self.number)

    def logits(self, ids: Tensor, exact: bool = False) -> Tensor:
        """Return the logits of all tokens [rows tokens vocabulary].

        By default attention is computed as it is served, in float16 and at once; else exactly.
        """
        return self.engine.ask("logits", number=self.number, ids=ids.tolist(), exact=exact)
