"""A finished model in the formats of engines, each compared with PyTorch after it was written."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from pruning.models import checkpoint
from pruning.models.files import reading
from pruning.runtimes.calls import random_tokens
from pruning.runtimes.runtime import Runtime

TOKENS = 64  # that both read
LEAST = 0.8  # share of them whose most likely token has to be the same: int8 differs at a few


@dataclass(frozen=True)
class Parity:
    """How far the answers of an engine are from those of PyTorch, on the same tokens."""

    same: float  # share of positions with the same most likely token or class
    kl: float  # mean of KL(PyTorch || engine), in nats


def export(model: Path, runtimes: Iterable[Runtime]) -> dict[str, Parity]:
    """Write a checkpoint for engines beside it, and return how each answers.

    ValueError where an engine answers otherwise: what was written for it is removed.
    """
    if not (model / "config.json").is_file():
        raise ValueError(f"{model} is no checkpoint: give the directory `model` of a finished job")
    with reading(model, str(model)):
        tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = checkpoint.load(model, torch.float32, torch.device("cpu"))
    answers = {}
    for runtime in runtimes:
        if not runtime.exports:
            raise ValueError(f"runtime={runtime.name} serves {model} as it is: nothing to export")
        runtime.check(loaded, tokenizer)
        written = model.parent / runtime.export(loaded, tokenizer, model.parent)
        answers[written.name] = alike = parity(loaded, runtime.served(loaded, written))
        if alike.same < LEAST:
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
