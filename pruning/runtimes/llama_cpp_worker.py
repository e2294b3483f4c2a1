"""The process in which llama.cpp runs: an order per line of JSON, an answer per line.

It is started by its path, in an interpreter that need not have this package: nothing of it may be
imported here. llama.cpp's assertions end the process; what it said is then in stderr.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

api: Any = import_module("llama_cpp")  # an extra, which need not be here to be checked

PAGE = 256  # the cache is made of as many cells
MICRO = 512  # tokens that llama.cpp computes at once, by default
FLOAT32 = 0  # a type of the cache, by llama.cpp's numbers
ERROR = 4  # a level of its log


class Model:
    """A file that is mapped to memory."""

    def __init__(self, path: str):
        options = api.llama_model_default_params()
        options.n_gpu_layers = 0
        options.use_extra_bufts = False  # with them Q8_0 crashes on AMX
        self.pointer = api.llama_model_load_from_file(path.encode(), options)
        if not self.pointer:
            raise ValueError("the file cannot be loaded")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.pointer))

    def free(self) -> None:
        """Give the memory back."""
        api.llama_model_free(self.pointer)


class Context:
    """A cache for so many sequences of so many tokens.

    Its keys and values are float16, with flash attention, as by default; float32 where `exact`.
    """

    def __init__(self, model: Model, sequences: int, tokens: int, threads: int, exact: bool):
        self.model, self.size = model, (sequences, tokens, exact)
        cells = -(-tokens // PAGE) * PAGE
        options = api.llama_context_default_params()
        options.n_ctx = cells * sequences
        options.n_seq_max = sequences
        options.n_batch = cells * sequences
        options.n_ubatch = min(MICRO, cells * sequences)
        options.n_threads = options.n_threads_batch = threads
        if exact:
            options.type_k = options.type_v = FLOAT32
            options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.no_perf = True
        self.pointer = api.llama_init_from_model(model.pointer, options)
        if not self.pointer:
            raise ValueError(f"there is no context of {sequences} x {tokens} tokens")
        self.memory = api.llama_get_memory(self.pointer)

    def free(self) -> None:
        """Give the memory back."""
        api.llama_free(self.pointer)

    def forget(self) -> None:
        """Empty the cache."""
        api.llama_memory_clear(self.memory, False)

    def cut(self, position: int) -> None:
        """Remove what is behind a position."""
        for sequence in range(self.size[0]):
            api.llama_memory_seq_rm(self.memory, sequence, position, -1)

    def evaluate(self, batch: "Batch") -> None:
        """Compute a batch to its end."""
        if code := api.llama_decode(self.pointer, batch.filled):
            raise ValueError(f"llama_decode gives {code}")
        api.llama_synchronize(self.pointer)

    def logits(self, rows: int) -> np.ndarray:
        """Return the logits of the last batch, of as many tokens as asked for them."""
        shape = (rows, self.model.vocabulary)
        return np.ctypeslib.as_array(api.llama_get_logits(self.pointer), shape)


class Batch:
    """Tokens [sequences tokens] from a position on; logits of the last ones or of all."""

    def __init__(self, ids: np.ndarray, start: int = 0, every: bool = False):
        self.rows, self.count = ids.shape
        batch = self.filled = api.llama_batch_init(ids.size, 0, 1)
        batch.n_tokens = ids.size
        for index in range(ids.size):
            sequence, place = divmod(index, self.count)
            batch.token[index] = int(ids[sequence, place])
            batch.pos[index] = start + place
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = every or place == self.count - 1

    def free(self) -> None:
        """Give the memory back."""
        api.llama_batch_free(self.filled)


class Worker:
    """What is loaded, by numbers that are given out in turn."""

    def __init__(self, threads: int):
        self.threads, self.last = threads, 0
        self.models: dict[int, Model] = {}
        self.contexts: dict[int, Context] = {}
        self.calls: dict[int, Callable[[], None]] = {}

    def load(self, path: str) -> dict[str, Any]:
        """Load a file."""
        self.last += 1
        self.models[self.last] = Model(path)
        return {"number": self.last, "vocabulary": self.models[self.last].vocabulary}

    def free(self, number: int) -> None:
        """Free a model and what belongs to it."""
        self.calls.pop(number, None)
        if context := self.contexts.pop(number, None):
            context.free()
        self.models.pop(number).free()

    def context(self, number: int, sequences: int, tokens: int, exact: bool) -> Context:
        """Give a model a context, in the place of the one that it had."""
        self.calls.pop(number, None)
        if former := self.contexts.pop(number, None):
            former.free()
        made = Context(self.models[number], sequences, tokens, self.threads, exact)
        self.contexts[number] = made
        return made

    def prepare(self, number: int, work: dict[str, Any]) -> dict[str, Any]:
        """Make what `call` does: a phase, on tokens that do not matter to the time."""
        phase, sequences, tokens = work["phase"], work["batch"], work["sequence"]
        more = max(1, work["tokens"])
        context = self.context(number, sequences, tokens + more, False)
        draw = np.random.default_rng(0).integers
        vocabulary = self.models[number].vocabulary
        prompt = Batch(draw(vocabulary, size=(sequences, tokens)))
        one = Batch(draw(vocabulary, size=(sequences, 1)), tokens)

        def prefill() -> None:
            context.forget()
            context.evaluate(prompt)

        def decode() -> None:
            context.evaluate(one)
            context.cut(tokens)

        def generate() -> None:
            prefill()
            for place in range(tokens, tokens + more - 1):
                chosen = context.logits(sequences).argmax(-1)
                for row in range(sequences):
                    one.filled.token[row] = int(chosen[row])
                    one.filled.pos[row] = place
                context.evaluate(one)

        self.calls[number] = {"prefill": prefill, "decode": decode, "generate": generate}[phase]
        if phase == "decode":
            prefill()
        return {}

    def call(self, number: int) -> dict[str, Any]:
        """Do once what was prepared."""
        self.calls[number]()
        return {}

    def logits(self, number: int, ids: list[list[int]], exact: bool) -> np.ndarray:
        """Return the logits of all tokens [rows tokens vocabulary], a row at a time."""
        rows = np.array(ids)
        context = self.contexts.get(number)
        if context is None or context.size != (1, rows.shape[1], exact):
            context = self.context(number, 1, rows.shape[1], exact)
        gathered = []
        for row in rows:
            batch = Batch(row[None], every=True)
            context.forget()
            context.evaluate(batch)
            gathered.append(context.logits(len(row)).copy())
            batch.free()
        return np.stack(gathered)


@api.llama_log_callback
def quiet(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    """Keep what is wrong, and nothing else."""
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))
        sys.stderr.flush()


def serve(threads: int) -> None:
    """Answer orders until there are no more; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    worker = Worker(threads)
    for line in sys.stdin:
        order = json.loads(line)
        body = b""
        try:
            for number in order.pop("free"):
                worker.free(number)
            answer = getattr(worker, order.pop("do"))(**order)
            if isinstance(answer, np.ndarray):
                answer, body = {"shape": answer.shape}, answer.tobytes()
        except ValueError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n" + body)
        answers.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
