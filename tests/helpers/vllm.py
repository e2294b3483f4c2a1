"""Models that vLLM serves, of every kind; its attention takes heads of 32 columns or more."""

import os

import torch
from transformers import (
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tests.helpers.families import COMMON, GATED, random_model
from tests.helpers.written import pruned, untied, with_output_biases, without

PYTHON = os.environ.get("PRUNING_VLLM_PYTHON")  # of an environment with vLLM
WIDE = {"hidden_size": 256, "max_position_embeddings": 256}
HEAD = {**GATED, "max_position_embeddings": 256, "head_dim": 32}


def llama(**values) -> PreTrainedModel:
    return random_model(LlamaConfig(**(HEAD | {"tie_word_embeddings": True} | values)))


MADE = {
    "llama": llama,
    "mistral": lambda: random_model(MistralConfig(**HEAD, sliding_window=6)),
    "qwen2": lambda: random_model(Qwen2Config(**(GATED | WIDE))),
    "qwen3": lambda: random_model(Qwen3Config(**HEAD, tie_word_embeddings=True)),
    "gemma": lambda: random_model(GemmaConfig(**HEAD)),
    "opt": lambda: random_model(
        OPTConfig(**(COMMON | WIDE | {"ffn_dim": 96, "word_embed_proj_dim": 64}))
    ),
}
MODELS = {
    **MADE,
    **{f"{family}, uneven": lambda make=make: pruned(make()) for family, make in MADE.items()},
    "llama, untied, uneven": lambda: pruned(untied(llama())),
    "biases, uneven": lambda: pruned(llama(attention_bias=True, mlp_bias=True)),
    "output biases, qwen3, uneven": lambda: with_biases_in_the_config(pruned(MADE["qwen3"]())),
    "output biases, uneven": lambda: with_biases_in_the_config(pruned(llama())),
    "block 0 gone": lambda: without(llama(), (0, 0, 0, 0)),
    "block 1 gone": lambda: without(MADE["qwen3"](), (1, 0, 0, 0)),
    "no attention at all": lambda: without(llama(), *((i, 0, 0, 96) for i in range(3))),
    "no FFN at all": lambda: without(llama(), *((i, 4, 2, 0) for i in range(3))),
    "fewer heads": lambda: without(llama(), *((i, 3, 1, 96) for i in range(3))),
}


def with_biases_in_the_config(model: PreTrainedModel) -> PreTrainedModel:
    """Give it random biases that its family has not, and let its checkpoint say so."""
    model.config.output_bias = True  # type: ignore[attr-defined]
    return with_output_biases(model)


@torch.no_grad()
def continued(model: PreTrainedModel, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Return the tokens that greedily follow, computed without a cache."""
    options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count}
    mask = torch.ones_like(ids)
    made = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    return made[:, ids.shape[1] :]  # type: ignore[index]
