"""Tiny random models of every supported family."""

from collections.abc import Callable

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GATED = {**COMMON, "num_key_value_heads": 4, "intermediate_size": 96}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model whose every parameter, biases and norms included, is random and matters."""
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or "ln_" in name:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(0.15 * noise)
    return model.eval()


def llama(**values) -> PreTrainedModel:
    return random_model(LlamaConfig(**GATED, tie_word_embeddings=True, **values))


def mistral() -> PreTrainedModel:
    return random_model(MistralConfig(**GATED, head_dim=16, sliding_window=6))


def qwen2() -> PreTrainedModel:
    return random_model(Qwen2Config(**GATED))


def qwen3() -> PreTrainedModel:
    return random_model(Qwen3Config(**GATED, head_dim=16, tie_word_embeddings=True))


def gemma() -> PreTrainedModel:
    return random_model(GemmaConfig(**GATED, head_dim=16))


def gpt2() -> PreTrainedModel:
    return random_model(GPT2Config(**COMMON, max_position_embeddings=128))


def opt() -> PreTrainedModel:
    values = {"ffn_dim": 96, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
    return random_model(OPTConfig(**COMMON, **values))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma": gemma,
    "gpt2": gpt2,
    "opt": opt,
}
