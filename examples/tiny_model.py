"""Write a tiny random llama, its tokenizer and a text: `python examples/tiny_model.py DIRECTORY`.

Every command of launch.py takes seconds on it: `model=local model.path=DIRECTORY model.name=tiny`.
"""

import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def tokenizer() -> PreTrainedTokenizerFast:
    """Return one that has a token for each byte."""
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    of_bytes = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, merges=[]))
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_bytes.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=of_bytes, **special)


def main(directory: str) -> None:
    """Write all three."""
    words = tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    model.save_pretrained(directory)
    words.save_pretrained(directory)
    draw = random.Random(0)
    text = "".join(draw.choice("etaoin shrdlu ") for _ in range(80_000))
    (Path(directory) / "text.txt").write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
