"""A training whose weights lie in shards over its processes: FSDP 2, by accelerate.

`accelerate launch --use_fsdp` says so in the environment of its processes. Of every block each
process holds a part of the weights, gradients and optimizer states, and the whole of it while it
runs. The teacher is cut like the student. What is cut does not pass through a device as a whole:
the first process has it on the host, the others have no weights until they get their shards.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from pruning.models import checkpoint
from pruning.models.sites import blocks
from pruning.system.device_locks import locked


def in_shards() -> bool:
    """Say whether the command that started this process asks for shards."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def is_first() -> bool:
    """Say whether this process is the one that writes."""
    return int(os.environ.get("RANK", 0)) == 0


def checkpoints(directory: Path) -> Path:
    """Return where the checkpoints of this training are: shards are no checkpoint of a whole."""
    return directory / "shards" if in_shards() else directory


def prepare_(student: PreTrainedModel) -> None:
    """Let accelerate cut between blocks, and with the version of FSDP that keeps parameters.

    All else is as the command says. ValueError for what does not go with pruned models.
    """
    if getattr(student.config, checkpoint.EMBEDDING, None):
        raise ValueError(
            "recovery.launcher: an embedding in clusters (method.embedding) cannot be cut into "
            "shards: leave --use_fsdp out"
        )
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ValueError(
            "recovery.launcher: leave --fsdp_activation_checkpointing out, and give "
            "recovery.gradient_checkpointing=true"
        )
    os.environ["FSDP_VERSION"] = "2"
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
    os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = type(blocks(student)[0]).__name__
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
    # nothing is written into what the model gives
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    # accelerate tells parameters by their addresses, which those without data do not have
    student._apply(lambda t: torch.empty_like(t, device="cpu") if t.is_meta else t)
    student.tie_weights()


def load(
    path: Path, dtype: torch.dtype, device: torch.device, attention: str | None
) -> PreTrainedModel:
    """Load a model onto the device, or onto the host where it will be cut.

    There only the first process keeps its weights, which it will send.
    """
    if not in_shards():
        return checkpoint.load(path, dtype, device, attention)
    with locked(path / "loading.lock"):  # one at a time: the host may have no room for all
        model = checkpoint.load(path, dtype, torch.device("cpu"), attention)
        if not is_first():
            model._apply(lambda t: t.to("meta") if isinstance(t, nn.Parameter) else t)
    return model


def use_shards_(accelerator: Accelerator) -> None:
    """Let accelerate cut models on CPUs too: by itself it does so on other devices alone."""
    state = accelerator.state
    if state.distributed_type is DistributedType.MULTI_CPU:
        plugin = FullyShardedDataParallelPlugin()
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin


def cut_(teacher: PreTrainedModel, accelerator: Accelerator) -> None:
    """Cut a model that is only asked into shards; accelerate's own way in wants an optimizer."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    whole = fsdp2_prepare_model(accelerator, teacher.requires_grad_(False))
    assert isinstance(whole, FSDPModule)
    whole.set_reshard_after_forward(True)  # no backward pass will do it


def gather_(model: nn.Module) -> None:
    """Put whole parameters in the place of shards: on the host of the first process alone."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    whole: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, shard in [*module.named_parameters(recurse=False)]:
            if isinstance(shard, DTensor) and shard not in whole:
                sharded: Any = shard.detach()
                full: Tensor = sharded.full_tensor()
                full = full.cpu() if is_first() else full.to("meta")
                whole[shard] = nn.Parameter(full, shard.requires_grad)
            setattr(module, name, whole.get(shard, shard))
