"""Load weights that are all there, all used, of the right shapes, and finite; or say which are not.

transformers draws at random what a file lacks, and drops what it has too much.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from pruning.models.files import listed, reading
from pruning.models.sites import architecture
from pruning.models.streamed import weights
from pruning.system.progress import without_bars

OLD_BUFFERS = re.compile(r"\.attn\.masked_bias$")  # of gpt2, in files of transformers 3 and 4


def loaded(kind: Any, where: str | Path, said: str, **options: Any) -> PreTrainedModel:
    """Return `kind.from_pretrained(where, **options)`; its weights are those of the file, and all.

    Harmless are buffers, tied copies, what transformers itself declares so, and heads of an
    encoder: for other tasks than this one, and a new one where its class is not in the config.
    ValueError, which begins with `said`, names anything else, and weights that are not finite.
    """
    unseen = without_bars() if Path(where).is_dir() else nullcontext()  # a download shows its bars
    with reading(where, said, options.get("revision")), _unreported(), unseen:
        try:
            model, info = kind.from_pretrained(
                where, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except RuntimeError as error:
            if "conversion" not in str(error):
                raise
            raise ValueError(
                f"{said}: weights and config.json differ: the file lacks weights of experts, so "
                "that they cannot be stacked: give the whole checkpoint"
            ) from error
    encoder = architecture(model).encoder
    fresh = encoder and type(model).__name__ not in (model.config.architectures or ())
    missing = [name for name in info["missing_keys"] if not (fresh and _is_head(model, name))]
    unused = [
        name
        for name in info["unexpected_keys"]
        if not OLD_BUFFERS.search(name) and not (encoder and _is_head(model, name))
    ]
    other = [
        f"{name} of {tuple(given)}, where config.json says {tuple(wanted)}"
        for name, given, wanted in info["mismatched_keys"]
    ]
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    untied = [
        f"{name} and {source}" for name, source in tied.items() if not _same(model, name, source)
    ]
    faults = [
        f"{what} {listed(names)}"
        for what, names in (
            ("the file lacks", missing),
            ("the model has no place for", unused),
            ("another shape has", other),
            ("config.json says that they are tied, but different are", untied),
        )
        if names
    ]
    if faults:
        remedy = "correct config.json, or give the whole checkpoint"
        if any(_is_head(model, name) for name, *_ in info["mismatched_keys"]) and encoder:
            remedy += "; for a task of other classes (task.classes), one without a head"
        raise ValueError(f"{said}: weights and config.json differ: {'; '.join(faults)}: {remedy}")
    check_finite(
        model,
        said,
        "give a checkpoint without NaN and infinity, or model.dtype=float32 if the dtype is too "
        "small for its values",
    )
    return model


@contextmanager
def _unreported() -> Iterator[None]:
    """Leave out the table that transformers prints of differences; they are all judged here."""
    logger = logging.getLogger("transformers.modeling_utils")

    def others(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def check_finite(model: PreTrainedModel, said: str, remedy: str) -> None:
    """Raise ValueError, which begins with `said` and names them, where weights are not finite."""
    bad = []
    for name, tensor in weights(model):
        if not tensor.is_floating_point() or tensor.sum(dtype=torch.float32).isfinite():
            continue
        if count := int((~tensor.isfinite()).sum()):  # else the sum alone was too large
            bad.append(f"{name} ({count} of {tensor.numel()} values)")
    if bad:
        dtype = str(model.dtype).removeprefix("torch.")
        raise ValueError(f"{said}: not finite as {dtype}: {listed(bad)}: {remedy}")


def refuse_quantised(config: PreTrainedConfig, said: str) -> None:
    """Raise ValueError, which begins with `said`, where the weights are quantised."""
    for field in ("quantization_config", "compression_config"):
        given = getattr(config, field, None)
        if given is None:
            continue
        given = given if isinstance(given, dict) else given.to_dict()
        method = str(given.get("quant_method") or "an unnamed method")
        bits = given.get("bits") or given.get("w_bit")
        if method == "bitsandbytes":
            bits = 4 if given.get("load_in_4bit") else 8
        how = f"{method}, {bits} bits" if bits else method
        raise ValueError(
            f"{said} is quantised ({how}), and pruning changes weights in full precision: give "
            "the checkpoint that it was made from, and quantise the pruned one"
        )


def refuse_attention(kind: Any, config: PreTrainedConfig, wanted: str | None) -> None:
    """Raise ValueError where the class of a model has no such implementation of attention.

    `kind` is the class itself, or transformers' class that chooses one by the config.
    """
    own = kind
    if hasattr(kind, "_model_mapping"):
        own = kind._model_mapping.get(type(config), None)
    there = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
    if wanted in there and not getattr(own, there[wanted], True):
        raise ValueError(
            f"model.attention={wanted} is not what transformers has for {config.model_type}: give "
            "auto or eager"
        )


def _is_head(model: PreTrainedModel, name: str) -> bool:
    """Tell what is not of the encoder itself, but of what reads it; the pooler is."""
    first = name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    return first == "pooler" or first not in model.base_model._modules


def _same(model: PreTrainedModel, name: str, source: str) -> bool:
    return model.get_parameter(name) is model.get_parameter(source)
