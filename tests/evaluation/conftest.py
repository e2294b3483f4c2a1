"""A tiny random Llama, a tokenizer of whole words, and lm-eval documents made up on the spot."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SENTENCE = "which of these is a the cold sun river moves Question Answer : ? \n\n hot ice fire"
WORDS = SENTENCE.split(" ")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<end>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>")


@pytest.fixture(scope="session")
def model(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=1,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Write 24 questions in ARC's columns."""
    words = ["sun", "river", "ice", "fire", "cold", "hot", "moves"]
    path = tmp_path / "questions.jsonl"
    with path.open("w") as file:
        for i in range(24):
            choices = [words[(i + k) % 7] for k in (0, 2, 5)] + [f"the {words[(3 * i) % 7]} moves"]
            row = {
                "id": str(i),
                "question": f"which of these is {words[(2 * i) % 7]} ?",
                "choices": {"text": choices, "label": ["A", "B", "C", "D"]},
                "answerKey": "ABCD"[i % 4],
            }
            file.write(json.dumps(row) + "\n")
    return path
