"""Documents of running text."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import ClassVar

from pruning.data.files import TABLES, kind, read_text
from pruning.data.rows import SCALAR, Rows, report_skipped
from pruning.system.cache import Cache

log = logging.getLogger(__name__)

MOST = 100_000  # documents of a hub dataset, of which some have no end


@dataclass
class Text(Rows):
    """Documents, one string each: a column of rows, or whole .txt, .raw or .tokens files."""

    column: str = "text"  # column or JSON key that holds the text
    template: str | None = None  # of several columns, such as "{instruction}\n{output}"
    limit: int | None = None  # documents to read at most; null: all, of the hub 100,000
    distinct: bool = True  # blank and repeated documents are left out
    start: float = 0.0  # first document to use, as a fraction of them
    stop: float = 1.0  # end of the documents to use, likewise

    suffixes: ClassVar[tuple[str, ...]] = (*TABLES, ".txt", ".raw", ".tokens")

    def documents(self, cache: Cache, field: str) -> list[str]:
        """Read the documents of [start, stop), in order; errors name `field`."""
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                f"{field}.start={self.start} and {field}.stop={self.stop} must satisfy "
                "0 <= start < stop <= 1"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"{field}.limit={self.limit} must be at least 1, or null for all")
        files = self.files(cache, field)
        limit = self.limit if self.limit is not None or files else MOST
        read = list(islice(self._texts(files, cache, field), limit))
        if self.limit is None and len(read) == limit:
            log.warning("%s.limit=null: only %d documents of %s are read", field, MOST, self.path)
        documents = [text for text in read if text is not None]
        report_skipped(len(read) - len(documents), field, self.path)
        if self.distinct:
            documents = list(dict.fromkeys(text for text in documents if text.strip()))
        documents = documents[int(self.start * len(documents)) : int(self.stop * len(documents))]
        if not documents:
            raise ValueError(f"{field}.path={self.path!r} holds no text in the chosen range")
        return documents

    def _texts(self, files: list[Path], cache: Cache, field: str) -> Iterator[str | None]:
        whole = [path for path in files if path.is_file() and kind(path) not in TABLES]
        if whole:
            yield from (read_text(path, f"{field}.path") for path in whole)
        else:
            yield from self._rendered(cache, field)

    def _rendered(self, cache: Cache, field: str) -> Iterator[str | None]:
        """Yield the text of each row; None where a column of it is null."""
        needed, kinds = [("column", self.column)], str
        if self.template is not None:
            needed, kinds = [("template", name) for name in self._names(field)], SCALAR
        columns = [name for _, name in needed]
        for place, row in self.placed(cache, field, needed, texts=columns):
            cells = [self.cell(row, place, field, each, kinds, missing=True) for each in needed]
            if None in cells:
                yield None
            else:
                yield cells[0] if self.template is None else self.template.format_map(row)

    def _names(self, field: str) -> list[str]:
        """Return the columns in the template; ValueError where it is none."""
        assert self.template is not None
        try:
            return [name for _, name, _, _ in Formatter().parse(self.template) if name]
        except ValueError as error:
            raise ValueError(
                f"{field}.template={self.template!r} is no template ({error}): write columns as "
                "{column}, and a bracket itself twice"
            ) from error
