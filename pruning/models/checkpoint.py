"""Write a pruned model as an ordinary Hugging Face directory."""

import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruning.models import modeling_pruned
from pruning.models.modeling_pruned import block_shape, head_size, ranks
from pruning.models.sites import HEADS, architecture, blocks

CODE = Path(modeling_pruned.__file__)
EMBEDDING = "embedding_clusters"  # key in config.json
OURS = ("output_bias", "ranks", EMBEDDING)  # keys that no class of transformers knows


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, path: Path, card: str
) -> None:
    """Write weights, config, tokenizer and model card to `path`, whole or not at all.

    Where all blocks have one shape the checkpoint is plain; else it carries its modelling file
    and is loaded with `trust_remote_code=True`.
    """
    config = describe(model)
    partial, former = (path.with_name(f".{path.name}.{state}") for state in ("partial", "former"))
    for leftover in (partial, former):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    for file in partial.glob("*.py"):  # of a model that was itself loaded with remote code
        file.unlink()
    config.save_pretrained(partial)
    if getattr(config, "auto_map", None):
        shutil.copyfile(CODE, partial / CODE.name)
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    mode = (partial / "README.md").stat().st_mode
    for file in partial.glob("*.safetensors"):  # written as 0600 whatever the umask
        file.chmod(mode)
    if path.exists():
        os.replace(path, former)  # a directory can only replace an empty one
    os.replace(partial, path)
    shutil.rmtree(former, ignore_errors=True)


def load(
    path: Path, dtype: torch.dtype, device: torch.device, attention: str | None = None
) -> PreTrainedModel:
    """Load a checkpoint that `save` wrote; this package's modelling file is run, not its own.

    ValueError where it is not there any more.
    """
    if not (path / "config.json").exists():
        raise ValueError(
            f"{path} is gone, and its job counts as done: remove {path.parent}, and it runs again"
        )
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    name = (config.architectures or [""])[0]
    kind = getattr(modeling_pruned, name, None) or getattr(transformers, name)
    model = kind.from_pretrained(path, config=config, dtype=dtype, attn_implementation=attention)
    return model.to(device).eval()


def describe(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the config that rebuilds the model, read off its blocks."""
    a = architecture(model)
    config = deepcopy(model.config)
    config.per_layer_config = None
    config.dtype = str(model.dtype).removeprefix("torch.")
    for stale in ("auto_map", "allow_global_per_layer_attribute_access", "ranks", EMBEDDING):
        config.__dict__.pop(stale, None)
    shapes = [block_shape(block, a) for block in blocks(model)]
    if a.kv_heads:  # other families take it from the dense model's heads
        config.head_dim = next(
            head_size(block, a)
            for block, (groups, _, _) in zip(blocks(model), shapes, strict=True)
            if groups
        )
    if getattr(config, a.intermediate) is None:  # gpt2's way to say four times the hidden size
        setattr(config, a.intermediate, 4 * config.hidden_size)
    dense = type(model).__name__.removeprefix("Pruned")
    low = {str(i): found for i, block in enumerate(blocks(model)) if (found := ranks(block))}
    if low:
        config.ranks = low
    if found := clusters(model):
        config.embedding_clusters = found
    if len(set(shapes)) == 1 and (plain := _plain(config, dense, *shapes[0])) is not None:
        return plain
    config.architectures = [f"Pruned{dense}"]
    config.auto_map = {auto_class(dense): f"{CODE.stem}.Pruned{dense}"}
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = {
        index: _override(config, *shape) for index, shape in enumerate(shapes)
    }
    return config


def clusters(model: PreTrainedModel) -> dict | None:
    """Return how the embedding is split into clusters, None where it is whole."""
    embedding: Any = model.get_input_embeddings()
    if not hasattr(embedding, "ranks"):
        return None
    tied = hasattr(model.get_output_embeddings(), "shared")
    return {"sizes": embedding.sizes, "ranks": embedding.ranks, "tied": tied}


def auto_class(name: str) -> str:
    """Name what of transformers loads a checkpoint of the model class `name`."""
    return next(
        (f"AutoModel{head}" for head in HEADS if name.endswith(head)), "AutoModelForCausalLM"
    )


def _override(config: PreTrainedConfig, groups: int, heads: int, width: int) -> dict:
    """Return one block's entry; transformers drops what equals the global value."""
    a = modeling_pruned.ARCHITECTURES[config.model_type]
    entry: dict = {"skip": [n for n, s in (("attention", groups), ("mlp", width)) if s == 0]}
    if groups:
        entry[a.heads] = groups * heads
        if a.kv_heads:
            entry[a.kv_heads] = groups
    if width:
        entry[a.intermediate] = width
    return entry


def _plain(
    config: PreTrainedConfig, dense: str, groups: int, heads: int, width: int
) -> PreTrainedConfig | None:
    """Return an ordinary config for blocks of one shape; None where the family has none."""
    a = modeling_pruned.ARCHITECTURES[config.model_type]
    kind = type(config)
    values = config.to_dict()
    if 0 in (groups, heads, width) or any(values.get(key) for key in OURS):
        return None
    values[a.intermediate] = width
    if a.kv_heads is None:
        if groups != values[a.heads]:
            return None  # these families define the head size as hidden size over heads
    else:
        values |= {a.heads: groups * heads, a.kv_heads: groups}
        if config.model_type == "llama" and config.hidden_size % (groups * heads):
            # LlamaConfig refuses this; Mistral without a window is the same model without biases
            if config.attention_bias or config.mlp_bias:
                return None
            kind, dense = MistralConfig, "MistralForCausalLM"
            values["sliding_window"] = None
            for key in ("attention_bias", "mlp_bias", "pretraining_tp"):
                values.pop(key, None)
    values["architectures"] = [dense]
    values.pop("model_type", None)
    return kind(**values)
