"""Tiny random models of every supported family."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertConfig,
    MPNetConfig,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    RobertaConfig,
    SmolLM3Config,
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


def random_model(config: PreTrainedConfig, auto: Any = None) -> PreTrainedModel:
    """Build a model whose every parameter, biases and norms included, is random and matters."""
    labels = config.id2label is not None and config.num_labels == 3
    auto = auto or (AutoModelForSequenceClassification if labels else AutoModelForCausalLM)
    model = auto.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() or "ln_" in name:
                parameter.add_(0.2 * noise)
            else:  # a classifier of real weights tells texts apart
                parameter.copy_(
                    (0.6 if "classifier" in name or "qa_outputs" in name else 0.15) * noise
                )
    return model.eval()


def llama(**values) -> PreTrainedModel:
    return random_model(LlamaConfig(**(GATED | {"tie_word_embeddings": True} | values)))


def mistral() -> PreTrainedModel:
    return random_model(MistralConfig(**GATED, head_dim=16, sliding_window=6))


def qwen2() -> PreTrainedModel:
    return random_model(Qwen2Config(**GATED))


def qwen3() -> PreTrainedModel:
    return random_model(Qwen3Config(**GATED, head_dim=16, tie_word_embeddings=True))


def gemma() -> PreTrainedModel:
    return random_model(GemmaConfig(**GATED, head_dim=16))


def phi3() -> PreTrainedModel:
    values = {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_type": "default"}
    return random_model(Phi3Config(**GATED, rope_parameters=values))


def smollm3() -> PreTrainedModel:
    """Build one of which the second layer has no positions."""
    return random_model(SmolLM3Config(**GATED, no_rope_layer_interval=2))


def granite() -> PreTrainedModel:
    multipliers = {"embedding": 3.0, "residual": 0.5, "attention": 0.2}
    values = {f"{name}_multiplier": value for name, value in multipliers.items()}
    return random_model(GraniteConfig(**GATED, **values, logits_scaling=1.5))


LAYERS = {  # a fourth, since the first attention of each kind stays
    **GATED,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "sliding_window": 6,
    "head_dim": 16,
}


def gemma2() -> PreTrainedModel:
    """Build one whose caps matter."""
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 10.0}
    return random_model(Gemma2Config(**LAYERS, **caps))


def gemma3() -> PreTrainedModel:
    """Build one whose kinds of layers have other positions."""
    return random_model(Gemma3TextConfig(**LAYERS))


def gpt_neox() -> PreTrainedModel:
    values = {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_type": "default"}
    return random_model(GPTNeoXConfig(**COMMON, intermediate_size=96, rope_parameters=values))


def gpt2() -> PreTrainedModel:
    return random_model(GPT2Config(**COMMON, max_position_embeddings=128))


def opt() -> PreTrainedModel:
    values = {"ffn_dim": 96, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
    return random_model(OPTConfig(**COMMON, **values))


ROUTED = {**GATED, "num_experts_per_tok": 2}


def qwen3_moe(**values) -> PreTrainedModel:
    """Build one whose gates are normed, as all that are published are."""
    sizes = {"moe_intermediate_size": 24, "num_experts": 6, "norm_topk_prob": True}
    return random_model(Qwen3MoeConfig(**(ROUTED | sizes | {"head_dim": 16} | values)))


def mixtral(**values) -> PreTrainedModel:
    return random_model(MixtralConfig(**(ROUTED | {"num_local_experts": 6} | values)))


def olmoe(**values) -> PreTrainedModel:
    """Build one whose gates do not add up to 1, and whose norms read all heads at once."""
    return random_model(OlmoeConfig(**(ROUTED | {"num_experts": 6} | values)))


ENCODER = {**COMMON, "intermediate_size": 96, "num_labels": 3, "max_position_embeddings": 128}


def bert() -> PreTrainedModel:
    return random_model(BertConfig(**ENCODER))


def roberta() -> PreTrainedModel:
    return random_model(RobertaConfig(**ENCODER))


def distilbert() -> PreTrainedModel:
    values = {"dim": 64, "n_layers": 3, "n_heads": 8, "hidden_dim": 96, "num_labels": 3}
    return random_model(DistilBertConfig(vocab_size=128, max_position_embeddings=128, **values))


def electra() -> PreTrainedModel:
    """Build one of which the embedding is narrower than the blocks."""
    return random_model(ElectraConfig(**ENCODER, embedding_size=32))


def mpnet() -> PreTrainedModel:
    """Build one whose bias of positions, which all blocks share, matters."""
    model: Any = random_model(MPNetConfig(**ENCODER))
    with torch.no_grad():
        model.mpnet.encoder.relative_attention_bias.weight.mul_(10)
    return model


def modernbert() -> PreTrainedModel:
    """Build one whose second and third layers have a window."""
    special = {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 4}
    return random_model(ModernBertConfig(**(ENCODER | special)))


def deberta() -> PreTrainedModel:
    """Build one as the third version is: scores of positions by the projections of texts."""
    positions = {
        **{"relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm"},
        **{"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    }
    return random_model(DebertaV2Config(**ENCODER, **positions, type_vocab_size=0))


def reader(family: str) -> PreTrainedModel:
    """Build an encoder that marks the answer in a context."""
    config = ENCODERS[family]().config
    config.num_labels = 2
    return random_model(config, AutoModelForQuestionAnswering)


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "phi3": phi3,
    "smollm3": smollm3,
    "granite": granite,
    "gpt_neox": gpt_neox,
    "gpt2": gpt2,
    "opt": opt,
    "qwen3_moe": qwen3_moe,
    "mixtral": mixtral,
    "olmoe": olmoe,
}
ROUTING = ("qwen3_moe", "mixtral", "olmoe")  # those with experts
ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "electra": electra,
    "mpnet": mpnet,
    "modernbert": modernbert,
    "deberta-v2": deberta,
}
EVERY = FAMILIES | ENCODERS
