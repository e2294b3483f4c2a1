"""Rows in a file that several processes read."""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from pruning.data.batch import Row


def save_rows(rows: Sequence[Row], file: Path) -> None:
    """Write rows of named tensors."""
    tensors = {
        f"{index}.{name}": tensor.contiguous()
        for index, row in enumerate(rows)
        for name, tensor in row.items()
    }
    save_file(tensors, file)


def load_rows(file: Path) -> list[Row]:
    """Read what `save_rows` wrote, in its order."""
    rows: dict[int, Row] = {}
    for key, tensor in load_file(file).items():
        index, _, name = key.partition(".")
        rows.setdefault(int(index), {})[name] = tensor
    return [rows[index] for index in sorted(rows)]
