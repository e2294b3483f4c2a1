"""Read single tensors of safetensors files, each into memory of its own.

Files are not mapped: pages of a mapped file count as the process's own, and a file that is cut
short while it is mapped ends the process without a word.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LENGTH = struct.Struct("<Q")  # of the header, in front of it


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    file: Path
    start: int  # byte in the file
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """Read the tensor; ValueError where the file is gone or cut short."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        left = tensor.view(-1).view(torch.uint8).numpy().data
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.start)
                while left and (count := file.readinto(left)):
                    left = left[count:]
        except OSError as error:
            raise ValueError(f"{self.file} cannot be read ({error.strerror})") from error
        if left:
            said = f"{self.file} is damaged ({len(left)} bytes are missing)"
            raise ValueError(f"{said}: remove it and download it again")
        return tensor


def places(file: Path) -> dict[str, Place]:
    """Return where each tensor of a file lies, by name; ValueError where it is not whole."""
    return described(file)[0]


def described(file: Path) -> tuple[dict[str, Place], dict[str, str]]:
    """Return where each tensor of a file lies, and what else its header says."""
    try:
        with file.open("rb") as opened:
            (length,) = LENGTH.unpack(opened.read(LENGTH.size))
            header = json.loads(opened.read(length))
        rest = header.pop("__metadata__", {})
        first, end = LENGTH.size + length, LENGTH.size + length
        lying: dict[str, Place] = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
            lying[name] = Place(file, first + start, dtype, shape)
            end = max(end, first + stop)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from error
    except (struct.error, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        said = f"{file} is damaged (its header)"
        raise ValueError(f"{said}: remove it and download it again") from error
    if (size := file.stat().st_size) < end:
        said = f"{file} is damaged ({size} of {end} bytes are there)"
        raise ValueError(f"{said}: remove it and download it again")
    return lying, rest
