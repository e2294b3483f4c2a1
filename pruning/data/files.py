"""Files of rows and of text, and what to do about one that cannot be read."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from pruning.system.files import expanded

TABLES = (".jsonl", ".json", ".tsv", ".csv", ".parquet")  # all but the last also with .gz
POINTER = b"version https://git-lfs.github.com/spec"


class Pointer(Exception):
    """A file that git-lfs has not fetched."""


def kind(path: Path) -> str:
    """Return the suffix of a file, below `.gz` if it is packed."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def local(path: Path, option: str) -> list[Path]:
    """Return the file or folder at a path, or what fits it as a pattern, sorted."""
    path = expanded(path, option)
    if path.exists():
        return [path]
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


@contextmanager
def readable(path: Path, option: str) -> Iterator[None]:
    """Turn whatever is wrong with a file or folder into a ValueError that names it and a remedy."""
    try:
        _refuse_pointers(path)
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"{option}={str(path)!r} cannot be read ({reason}): {_remedy(path, error)}"
        ) from error


def read_text(path: Path, option: str) -> str:
    """Return the text of a file, which may be packed by gzip."""
    with readable(path, option), _opened(path) as file:
        return file.read()


def is_pointer(file: Path) -> bool:
    """Tell what only says where git-lfs keeps the content of a file."""
    with file.open("rb") as opened:
        return opened.read(len(POINTER)) == POINTER


def _refuse_pointers(path: Path) -> None:
    for file in path.glob("*") if path.is_dir() else [path]:
        if file.is_file() and is_pointer(file):
            raise Pointer(f"{file.name} only says where git-lfs keeps the content")


def _remedy(path: Path, error: Exception) -> str:
    if isinstance(error, Pointer):
        return "run `git lfs pull` where it was cloned, or download it"
    if isinstance(error, UnicodeDecodeError):
        return "convert it to UTF-8"
    if isinstance(error, PermissionError):
        return "let this user read it"
    if path.is_dir():
        return "give a folder of one split, written by datasets.save_to_disk"
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return "it is damaged or cut short; pack or download it again"
    if kind(path) in (".jsonl", ".json"):
        return "repair it, to one JSON object a line or one list of them"
    return "it is damaged or of another format; repair it, download it again, or give another"


def table(path: Path, texts: Sequence[str]) -> Iterable[Any]:
    """Read one file or folder."""
    if path.is_dir():
        from datasets import Dataset, load_from_disk

        rows = load_from_disk(str(path))
        if not isinstance(rows, Dataset):
            raise ValueError(f"it has several splits, {sorted(rows)}")
        return rows
    if kind(path) in (".jsonl", ".json"):
        return _objects(path)
    if kind(path) == ".parquet":
        return _parquet(path)
    import pandas

    options: dict[str, Any] = {"sep": "\t", "quoting": 3} if kind(path) == ".tsv" else {}
    options |= {"dtype": dict.fromkeys(texts, str), "low_memory": False}
    return pandas.read_csv(path, keep_default_na=False, **options).to_dict("records")


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Read Parquet with its own nulls and integers, which pandas turns into floats."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _objects(path: Path) -> Iterator[Any]:
    """Read JSON: an object a line, or one list of them."""
    with _opened(path) as file:
        listed = next((line.lstrip()[0] for line in file if line.strip()), "") == "["
        file.seek(0)
        if listed:
            yield from json.load(file)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
                yield row


def _opened(path: Path) -> TextIOWrapper:
    opens: Any = gzip.open if path.suffix == ".gz" else open
    return opens(path, "rt", encoding="utf-8-sig")  # with or without a byte order mark
