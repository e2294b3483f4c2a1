"""What passes are computed in; weights and what is kept of them stay as they are."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """What passes through a model are computed in; its weights stay as they are."""

    auto = "auto"  # bfloat16 where the device multiplies faster in it, else float32
    float32 = "float32"  # as the model is
    bfloat16 = "bfloat16"  # products; norms, sums and the stream stay as they are

    def is_bfloat16(self, device: "torch.device") -> bool:
        """Say whether products on a device are computed in bfloat16."""
        if self is Precision.auto:
            return fast_in_bfloat16(device)
        return self is Precision.bfloat16


def fast_in_bfloat16(device: "torch.device") -> bool:
    """Say whether a device has instructions that multiply bfloat16 matrices."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    instructions: Mapping[str, Any] = torch.cpu.get_capabilities()
    return any(instructions.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def computing(in_bfloat16: bool, device: "torch.device") -> AbstractContextManager[Any]:
    """Return a context in which products are computed in bfloat16, if they should be."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16)
