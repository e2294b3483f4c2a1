"""The process in which vLLM runs: an order per line of JSON, an answer per line.

It is started by its path, in an interpreter that need not have this package: nothing of it may be
imported here.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

SPAN = 64  # tokens that a sequence decodes before it is begun again


class Loaded:
    """A model in an engine of its own, and the work that it does."""

    def __init__(self, path: str, work: dict[str, Any], options: dict[str, Any]):
        vllm: Any = import_module("vllm")
        if options["model_impl"] == "plugin":
            options |= by_plugin(path)
        self.phase, self.batch, self.sequence = work["phase"], work["batch"], work["sequence"]
        self.more = max(1, work["tokens"])
        self.sampling, self.count = vllm.SamplingParams, 0
        self.llm = vllm.LLM(
            path,
            trust_remote_code=True,
            skip_tokenizer_init=True,
            generation_config="vllm",
            enable_prefix_caching=False,
            max_num_seqs=max(self.batch, 2),
            **options,
        )
        self.engine = self.llm.llm_engine
        vocabulary = self.engine.model_config.get_vocab_size()
        self.prompt = [1 + (7919 * i) % (vocabulary - 1) for i in range(self.sequence)]
        # half of what a sequence decodes lies behind its work's tokens, half before
        self.before = max(1, self.sequence - SPAN // 2)

    def begin(self, tokens: int, more: int) -> None:
        """Give every sequence of the batch to the scheduler."""
        values = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
        for _ in range(self.batch):
            self.count += 1
            prompt = {"prompt_token_ids": self.prompt[:tokens]}
            self.engine.add_request(
                str(self.count), prompt, self.sampling(max_tokens=more, **values)
            )

    def finish(self) -> None:
        """Let the scheduler work until nothing is left."""
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def prefill(self) -> None:
        """Read the prompts."""
        self.begin(self.sequence, 1)
        self.finish()

    def generate(self) -> None:
        """Read the prompts and answer them."""
        self.begin(self.sequence, self.more)
        self.finish()

    def decode(self) -> None:
        """Take one step of sequences that run; one call in some begins them again."""
        if not self.engine.has_unfinished_requests():
            self.begin(self.before, SPAN)
            running: set[str] = set()
            while len(running) < self.batch:
                running |= {output.request_id for output in self.engine.step()}
        self.engine.step()

    def tokens(self, ids: list[list[int]], count: int) -> list[list[int]]:
        """Return what greedily follows each prompt."""
        values = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
        prompts = [{"prompt_token_ids": row} for row in ids]
        options = self.sampling(max_tokens=count, **values)
        outputs = self.llm.generate(prompts, options, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def free(self) -> None:
        """Let go of all but the process group, which the other engines use too."""
        self.engine.engine_core._finalizer.detach()
        self.engine.engine_core.engine_core.model_executor.shutdown()


@cache
def plugin() -> Any:
    """Register the plugin as vLLM would that has this package beside it, and return it."""
    here = Path(__file__)
    loaded = []
    for name in ("vllm_plugin", "vllm_pruned"):
        spec: Any = spec_from_file_location(name, here.with_name(f"{name}.py"))
        loaded.append(module_from_spec(spec))
        spec.loader.exec_module(loaded[-1])
    registry, models = loaded
    registry.register(models.PrunedForCausalLM)
    return registry


def by_plugin(path: str) -> dict[str, Any]:
    """Return the options by which the plugin serves a checkpoint, dense or pruned."""
    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    names = [plugin().architecture(name) for name in config["architectures"]]
    return {"model_impl": "vllm", "hf_overrides": {"architectures": names}}


class Worker:
    """What is loaded, by numbers that are given out in turn."""

    def __init__(self) -> None:
        self.last = 0
        self.models: dict[int, Loaded] = {}
        self.calls: dict[int, Callable[[], None]] = {}

    def hello(self) -> dict[str, Any]:
        """Import the engine."""
        import_module("vllm")
        return {}

    def load(self, path: str, work: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """Load a checkpoint, and say what a call of it does."""
        model = Loaded(path, work, options)
        self.last += 1
        self.models[self.last] = model
        self.calls[self.last] = getattr(model, work["phase"])
        return {"number": self.last}

    def free(self, number: int) -> None:
        """Free a model."""
        self.calls.pop(number)
        self.models.pop(number).free()
        gc.unfreeze()  # an engine has what it loaded frozen
        gc.collect()

    def call(self, number: int) -> dict[str, Any]:
        """Do its work once."""
        self.calls[number]()
        return {}

    def tokens(self, number: int, ids: list[list[int]], count: int) -> dict[str, Any]:
        """Return what greedily follows each prompt."""
        return {"tokens": self.models[number].tokens(ids, count)}


@contextmanager
def answers() -> Iterator[Any]:
    """Return where answers go; what libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    yield out


def serve() -> None:
    """Answer orders until there are no more."""
    worker = Worker()
    with answers() as out:
        for line in sys.stdin:
            order = json.loads(line)
            try:
                for number in order.pop("free"):
                    worker.free(number)
                answer = getattr(worker, order.pop("do"))(**order)
            except Exception as error:
                lines = str(error).strip().splitlines() or [""]
                answer = {"error": f"{type(error).__name__}: {lines[-1]}"}
            out.write(json.dumps(answer).encode() + b"\n")
            out.flush()


if __name__ == "__main__":
    serve()
