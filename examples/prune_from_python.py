"""Prune a model from Python: `python examples/prune_from_python.py [MODEL]`, or `tiny` for a toy.

MODEL is a hub id or a directory, or else the default model of launch.py, which needs no hub; the
toy has random weights and takes seconds.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from pruning import Calibrated, Calibration, Local, Text, load, prune


def toy() -> tuple[Any, Any, dict[str, Any]]:
    """Return a random model, a tokenizer of a hundred words, and choices that suit them."""
    words = {f"w{i}": i for i in range(100)}
    split = Tokenizer(models.WordLevel(words, unk_token="w0"))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=split, unk_token="w0", pad_token="w1")
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    text = Path(tempfile.mkdtemp()) / "text.txt"
    drawn = torch.randint(100, (4000,), generator=torch.Generator().manual_seed(0))
    text.write_text(" ".join(f"w{i}" for i in drawn.tolist()))
    choices = {
        "hardware": Local(
            sequence_length=64, alignment=64, repetitions=5, tolerance=0.5, noise=None
        ),
        "calibration": Calibration(text=Text(str(text)), tokens=1024, sequence_length=32),
        "search": Calibrated(tokens=64, sequence_length=[32]),
    }
    return LlamaForCausalLM(config).eval(), tokenizer, choices


def main(name: str = "", out: str = "outputs/python") -> None:
    """Prune to 1.25x, print what was measured, and save."""
    choices: dict[str, Any] = {"suite": "quick"}
    if name == "tiny":
        model, tokenizer, choices = toy()
    elif not name:
        model, tokenizer = load()
    else:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    pruned = prune(model, tokenizer, speedup=1.25, **choices)
    print(f"measured {pruned.speedup.measured:.2f}x, target {pruned.speedup.target:.2f}x")
    for block in pruned.allocation:
        print(f"block {block.block}: {block.query_heads} heads, {block.ffn} FFN channels")
    print(pruned.result.evaluation.pruned)
    print(pruned.save(out) / "model")


if __name__ == "__main__":
    main(*sys.argv[1:])
