"""A finished model in the formats of engines, each compared with PyTorch after it was written."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from pruning.composition import compose
from pruning.models import checkpoint
from pruning.models.files import reading
from pruning.runtimes.calls import random_tokens
from pruning.runtimes.gguf_precision import Precision
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.session import quietly
from pruning.system.writing import writing

TOKENS = 64  # that both read
FORMATS = {"gguf": "llama_cpp", "onnx": "onnxruntime", "openvino": "openvino"}  # runtimes by format
# share of them whose most likely token has to be the same: int8 differs at a few, and four bits of
# a good model at a fifth
LEAST, LEAST_OF_FOUR_BITS = 0.8, 0.5


@dataclass(frozen=True)
class Parity:
    """How far the answers of an engine are from those of PyTorch, on the same tokens."""

    same: float  # share of positions with the same most likely token or class
    kl: float  # mean of KL(PyTorch || engine), in nats


def engines(names: str, precision: str | None) -> list[Runtime]:
    """Return the runtimes of some formats, separated by commas; a runtime's own name will do.

    Those that have the precision get it, and the others keep their default.
    """
    runtimes: dict[str, Runtime] = {}
    for name in names.split(","):
        if name not in (*FORMATS, *FORMATS.values()):
            raise ValueError(
                f"--to={names}: {name!r} is no format to export to: give {', '.join(FORMATS)}"
            )
        runtime = FORMATS.get(name, name)
        runtimes[runtime] = compose([f"runtime={runtime}"]).runtime
    if precision is None:
        return [*runtimes.values()]
    kinds: dict[str, Any] = {name: type(r.choices["precision"]) for name, r in runtimes.items()}
    offered = {name: [*kind] for name, kind in kinds.items()}
    if not any(precision in known for known in offered.values()):
        have = "; ".join(f"{name} has {', '.join(known)}" for name, known in offered.items())
        raise ValueError(f"--precision={precision} is in none of them: {have}")
    for name in runtimes:
        if precision in offered[name]:
            given = f"runtime={name}", f"runtime.precision={precision}"
            runtimes[name] = compose([*given]).runtime
    return [*runtimes.values()]


def export(model: Path, runtimes: Sequence[Runtime]) -> dict[str, Parity]:
    """Write a checkpoint for engines beside it, and return how each answers.

    ValueError where an engine answers otherwise: what was written for it is removed.
    """
    if not (model / "config.json").is_file():
        raise ValueError(f"{model} is no checkpoint: give the directory `model` of a finished job")
    with quietly():  # transformers warns of configs that older versions wrote
        with reading(model, str(model)):
            tokenizer = AutoTokenizer.from_pretrained(model)
        loaded = checkpoint.load(model, torch.float32, torch.device("cpu"))
    answers = {}
    for runtime in runtimes:
        runtime.check(loaded, tokenizer)
    for runtime in runtimes:
        with writing(model.parent, "the job"):
            written = model.parent / runtime.export(loaded, tokenizer, model.parent)
        answers[written.name] = alike = parity(loaded, runtime.served(loaded, written))
        four_bits = runtime.choices["precision"] == Precision.q4_k_m
        if alike.same < (LEAST_OF_FOUR_BITS if four_bits else LEAST):
            shutil.rmtree(written) if written.is_dir() else written.unlink()
            raise ValueError(
                f"runtime={runtime.name}: {written} answered otherwise than PyTorch at "
                f"{1 - alike.same:.0%} of {TOKENS} tokens and was removed: another "
                "runtime.precision may do; please report it"
            )
    return answers


@torch.no_grad()
def parity(model: PreTrainedModel, served: Any) -> Parity:
    """Compare what both say of the same random tokens."""
    ids = random_tokens(model, 1, TOKENS)
    left, right = (told(answer, ids) for answer in (model, served))
    same = (left.argmax(-1) == right.argmax(-1)).double().mean()
    log_p, log_q = left.double().log_softmax(-1), right.double().log_softmax(-1)
    return Parity(float(same), float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))


def told(model: Any, ids: Tensor) -> Tensor:
    """Return the logits, of starts and ends behind each other where there are these."""
    out = model(input_ids=ids)
    if getattr(out, "start_logits", None) is not None:
        return torch.stack([out.start_logits, out.end_logits])
    return out.logits
