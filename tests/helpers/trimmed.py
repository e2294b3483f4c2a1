"""Models and tokenizers that have tokens to lose: special ones, unused ones, rows of no token."""

import torch
from tokenizers import decoders
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.helpers.tokenizers import README

LINES = [line for line in README.read_text(encoding="utf-8").split("\n") if line.strip()]
KEPT = LINES[5:25]
ROWS = 640  # more than tokens


def marked(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Give it special tokens behind the others, a decoder, and a form for chats."""
    backend = tokenizer.backend_tokenizer
    backend.decoder = backend.decoder or decoders.ByteLevel()
    added = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    tokenizer.add_special_tokens(added)
    tokenizer.add_tokens(["<extra word>"])
    tokenizer.chat_template = "{% for m in messages %}<|begin|>{{ m.content }}<|end|>{% endfor %}"
    return tokenizer


@torch.no_grad()
def with_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Give a model rows for the tokens, and more; and numbers of tokens with a name."""
    model.resize_token_embeddings(ROWS, mean_resizing=False)
    generator = torch.Generator().manual_seed(7)
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        module.weight.copy_(0.15 * torch.randn(module.weight.shape, generator=generator))
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id  # type: ignore[union-attr]
        config.pad_token_id = tokenizer.pad_token_id  # type: ignore[union-attr]
        ends = [tokenizer.eos_token_id, tokenizer.bos_token_id]
        config.eos_token_id = ends if tokenizer.eos_token else None  # type: ignore[union-attr]
    return model.eval()
