"""Load a model whose blocks stay in the files of its checkpoint."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from pruning.models.files import INDEX, WEIGHTS, listed, reading
from pruning.models.sites import architecture, blocks
from pruning.models.streamed import Source, stream_
from pruning.models.tensor_files import Place, places
from pruning.models.weights import OLD_BUFFERS, check_finite

NO_WEIGHTS = re.compile(r"rotary_emb\.inv_freq$|\.attn(ention)?\.(masked_)?bias$")  # old buffers


def checkpoint(where: str, revision: str | None, said: str) -> dict[str, Place]:
    """Return where every tensor of a checkpoint lies, downloaded if it is on a hub.

    ValueError, which begins with `said`, where it is not of safetensors.
    """
    name = WEIGHTS[0]
    optional = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    with reading(where, said, revision):
        if (file := cached_file(where, name, **optional)) is not None:
            files = [file]
        elif (index := cached_file(where, f"{name}{INDEX}", **optional)) is not None:
            files, _ = get_checkpoint_shard_files(where, index, revision=revision)
        else:
            files = []
    if not files:
        raise ValueError(
            f"{said} has no safetensors, and only these can be read block by block: give "
            "model.resident=true, or convert it by `save_pretrained`"
        )
    lying: dict[str, Place] = {}
    for file in sorted(set(files)):
        lying |= places(Path(file))
    return lying


def loaded_streamed(
    make: Callable[[], PreTrainedModel],
    lying: dict[str, Place],
    where: str,
    said: str,
    device: torch.device,
) -> PreTrainedModel:
    """Return the model that `make` makes, all of it but its blocks in memory.

    ValueError, which begins with `said`, where the files lack weights, hold others, or some that
    are not finite.
    """
    with init_empty_weights():
        model = make()
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(where)
    if architecture(model).experts:
        raise ValueError(
            f"{said}: experts are not pruned one block at a time, and there is no room for the "
            "whole model: give model.resident=true, or use a machine with more memory"
        )
    names = _names(model, lying)
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    own = {**dict(model.named_parameters()), **_persistent(model)}
    faults = {
        "the file lacks": [n for n in own if n not in names and n not in tied],
        "the model has no place for": [
            key
            for key in lying.keys() - set(names.values())
            if not (OLD_BUFFERS.search(key) or NO_WEIGHTS.search(key))
        ],
        "another shape has": [
            f"{n} of {lying[names[n]].shape}, where config.json says {tuple(t.shape)}"
            for n, t in own.items()
            if n in names and lying[names[n]].shape != tuple(t.shape)
        ],
    }
    if said_of := [f"{what} {listed(which)}" for what, which in faults.items() if which]:
        raise ValueError(
            f"{said}: weights and config.json differ: {'; '.join(said_of)}: correct config.json, "
            "or give the whole checkpoint, or model.resident=true"
        )
    prefix, dtype = f"{architecture(model).blocks}.", model.dtype
    for name, tensor in own.items():
        if not name.startswith(prefix) and name in names:
            _put(model, name, lying[names[name]].read().to(device, tensor.dtype))
    model.tie_weights()
    for name, buffer in [*model.named_buffers()]:
        parent, _, last = name.rpartition(".")
        model.get_submodule(parent)._buffers[last] = buffer.to(device)
    for index, block in enumerate(blocks(model)):
        inside = f"{prefix}{index}."
        mine = {name: lying[names[inside + name]] for name, _ in block.named_parameters()}
        stream_(block, Source(mine, dtype, device))
    check_finite(model, said, "give a checkpoint without NaN and infinity, or model.dtype=float32")
    return model.eval()


def _names(model: PreTrainedModel, lying: dict[str, Place]) -> dict[str, str]:
    """Return what the files call each weight: as the model does, or without the base's name."""
    base = f"{model.base_model_prefix}."
    others = {"lm_head.weight": "embed_out.weight"}  # of gpt_neox
    names = {}
    for name in model.state_dict():
        called = (name, name.removeprefix(base), others.get(name, name))
        if (there := next((key for key in called if key in lying), None)) is not None:
            names[name] = there
    return names


def _persistent(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the buffers that checkpoints hold."""
    state = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in state}


def _put(model: nn.Module, name: str, values: torch.Tensor) -> None:
    parent, _, last = name.rpartition(".")
    module = model.get_submodule(parent)
    if last in module._buffers:
        module._buffers[last] = values
    else:
        setattr(module, last, nn.Parameter(values, requires_grad=False))
