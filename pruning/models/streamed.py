"""Models whose blocks stay in files: a block has its weights while it is open.

The parameters of a closed block are on PyTorch's meta device. Whoever reads or changes them opens
the block; a call of the block opens it by itself. A resident block is always open, so that every
loop over blocks is the same for both.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.models.modeling_pruned import add_output_biases_
from pruning.models.shrink import copy_sharing_weights
from pruning.models.sites import architecture, blocks
from pruning.models.tensor_files import Place, places
from pruning.system.cache import digest
from pruning.system.files import whole_file

BESIDE = "beside."  # begins the names of tensors in the file of a block that are none of it


@dataclass(frozen=True)
class Source:
    """Where the weights of a block lie, by their names in it, and what they are read as."""

    places: dict[str, Place]
    dtype: torch.dtype
    device: torch.device

    def __deepcopy__(self, memo: Any) -> "Source":
        return self


def stream_(block: nn.Module, source: Source) -> None:
    """Let a block have its weights only while it is open."""
    if not hasattr(block, "source"):
        block.register_forward_pre_hook(_open_for_call)
        block.register_forward_hook(_close_after_call, always_call=True)
    block.source = source  # type: ignore[assignment]
    close_(block)


def resident_(block: nn.Module, weights: dict[str, Tensor]) -> None:
    """Let a streamed block have these weights from now on."""
    for hooks in (block._forward_pre_hooks, block._forward_hooks):
        for number, hook in [*hooks.items()]:
            if hook in (_open_for_call, _close_after_call):
                del hooks[number]
                block._forward_hooks_always_called.pop(number, None)
    del block.source
    for name, values in weights.items():
        _set(block, name, values)


def is_streamed(model: PreTrainedModel) -> bool:
    """Tell whether the blocks of a model stay in files."""
    return any(hasattr(module, "source") for module in model.modules())


def is_closed(block: nn.Module) -> bool:
    """Tell whether a block is without its weights now."""
    return any(parameter.is_meta for parameter in block.parameters())


@contextmanager
def opened(block: nn.Module) -> Generator[nn.Module]:
    """Give a block with its weights: they are read, and freed by whoever opened it first."""
    if not is_closed(block):
        yield block
        return
    open_(block)
    try:
        yield block
    finally:
        close_(block)


def open_(block: nn.Module) -> None:
    """Read the weights of a closed block; ValueError where its files are gone or damaged."""
    source: Any = block.source
    for name, parameter in [*block.named_parameters()]:
        if parameter.is_meta:
            if name in source.places:
                W = source.places[name].read().to(source.device, source.dtype)
            else:  # of an output projection, added since
                assert name.endswith("bias"), f"{name} is in no file"
                W = torch.zeros(parameter.shape, dtype=source.dtype, device=source.device)
            assert W.shape == parameter.shape, f"{name}: {tuple(W.shape)}"
            _set(block, name, W)


def close_(block: nn.Module) -> None:
    """Free the weights of a block."""
    for name, parameter in [*block.named_parameters()]:
        _set(block, name, parameter.data.to("meta"))


def _set(block: nn.Module, name: str, values: Tensor) -> None:
    parent, _, last = name.rpartition(".")
    setattr(block.get_submodule(parent), last, nn.Parameter(values, requires_grad=False))


def _open_for_call(block: Any, args: Any) -> None:
    if is_closed(block):
        open_(block)
        block.closes = True


def _close_after_call(block: Any, args: Any, out: Any) -> None:
    if getattr(block, "closes", False):
        block.closes = False
        close_(block)


def weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights in the order of their names, one streamed block in memory at a time."""
    prefix = f"{architecture(model).blocks}."

    def home(name: str) -> int | None:
        inside = name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else ""
        return int(inside) if inside else None

    whole = model.state_dict()
    for index, names in groupby(sorted(whole), key=home):
        block = None if index is None else blocks(model)[index]
        with nullcontext() if block is None else opened(block):
            state = whole if block is None else block.state_dict(prefix=f"{prefix}{index}.")
            for name in names:
                yield name, state[name]


@contextmanager
def rewritten(
    dense: PreTrainedModel, pruned: PreTrainedModel, index: int, key: Any
) -> Generator[dict[str, Tensor]]:
    """Open a block of a dense model, and the same one of a copy, which is to be changed.

    Both share their weights. The changed block of a streamed model is written to a file named by
    `key`, which says all that decides what becomes of it, with what is put into the dictionary; it
    is closed then.
    """
    beside: dict[str, Tensor] = {}
    with opened(blocks(dense)[index]) as block:
        if not hasattr(block, "source"):
            yield beside
            return
        blocks(pruned)[index] = changed = copy_sharing_weights(block)
        if getattr(pruned.config, "output_bias", False):
            add_output_biases_([changed], architecture(pruned))
        yield beside
        file = _file(dense, index, key)
        file.parent.mkdir(parents=True, exist_ok=True)
        named = changed.state_dict() | {f"{BESIDE}{name}": t for name, t in beside.items()}
        with whole_file(file) as partial:
            save_file({name: tensor.contiguous() for name, tensor in named.items()}, partial)
        _attach_(changed, file)


def written_before(
    dense: PreTrainedModel, pruned: PreTrainedModel, index: int, key: Any
) -> dict[str, Tensor] | None:
    """Return what an earlier start put beside a block that `rewritten` wrote, None without one.

    Then the block of `pruned` is that one, once it has its shapes.
    """
    block = blocks(dense)[index]
    if not hasattr(block, "source") or not (file := _file(dense, index, key)).exists():
        return None
    _attach_(blocks(pruned)[index], file)
    lying = places(file).items()
    return {name.removeprefix(BESIDE): at.read() for name, at in lying if name.startswith(BESIDE)}


def _attach_(block: nn.Module, file: Path) -> None:
    own: Any = block.source
    stream_(block, Source(places(file), own.dtype, own.device))


def _file(dense: PreTrainedModel, index: int, key: Any) -> Path:
    directory: Any = dense.scratch
    return directory / f"{index:04}-{digest(key)}.safetensors"


def keep_blocks_in_(model: PreTrainedModel, directory: Path) -> None:
    """Say where blocks are written that are cut out of a streamed model."""
    model.scratch = directory  # type: ignore[assignment]
