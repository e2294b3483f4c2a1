"""Files that are written whole or not at all."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard, cast

SCRATCH = ".partial"  # ends the name of a file that is being written


def write_text(text: str, path: Path) -> None:
    """Write a text file whole or not at all."""
    write_bytes(text.encode(), path)


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(SCRATCH, f".{path.name}-", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)  # mkstemp gives 0600
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def clear_scratch(directory: Path) -> None:
    """Remove what killed writers left in a directory where nobody writes now.

    It may hold files of others, whatever their names: a job may run in a project's directory.
    """
    for leftover in directory.glob(f".*-*{SCRATCH}"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


def only_local(path: str) -> bool:
    """Tell a path that no hub id can be, by how it begins."""
    return path.startswith((".", "/", "~"))


def expanded(path: str | Path, option: str) -> Path:
    """Put the home directory in the place of `~`; ValueError, naming `option`, without one."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{option}={str(path)!r}: there is no such home directory: set HOME, or give a path "
            "that begins with /"
        ) from error


@contextmanager
def whole_directory(path: Path) -> Generator[Path]:
    """Give an empty directory to write to, that takes the place of `path` once all is written."""
    partial, former = (path.with_name(f".{path.name}.{state}") for state in ("partial", "former"))
    for leftover in (partial, former):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        os.replace(path, former)  # a directory can only replace an empty one
    os.replace(partial, path)
    shutil.rmtree(former, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Give a file to write, that takes the place of `path` once all is written."""
    partial = path.with_suffix(SCRATCH)
    yield partial
    os.replace(partial, path)


def to_json(value: Any, **options: Any) -> str:
    """Write JSON, null for NaN and infinity, which it does not have; options of json.dumps."""
    return json.dumps(finite(value), allow_nan=False, **options)


def is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    """Say whether a value of any type is a dictionary, of anything."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Say whether a value of any type is a list, of anything."""
    return isinstance(value, list)


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if is_dict(value):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in cast(Sequence[Any], value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
