"""Texts with labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from omegaconf import MISSING

from pruning.data.rows import NUMBER, Rows, report_skipped
from pruning.system.cache import Cache


@dataclass
class Labelled(Rows):
    """Texts, or pairs of texts, with labels."""

    columns: list[str] = MISSING  # of the text, or of the two
    label: str = "label"  # column of class numbers, or of the number that is predicted

    def read(self, cache: Cache, field: str, limit: int | None = None) -> list[dict]:
        """Return the rows whose texts are there, at most `limit`.

        ValueError where the file or a column is not there, or a cell is of the wrong type.
        """
        if len(self.columns) not in (1, 2):
            raise ValueError(
                f"{field}.columns={self.columns} must name one column of texts, or two of pairs"
            )
        return list(islice(self._labelled(cache, field), limit))

    def _labelled(self, cache: Cache, field: str) -> Iterator[dict]:
        texts, label, skipped = [("columns", c) for c in self.columns], ("label", self.label), 0
        for place, row in self.placed(cache, field, [*texts, label], texts=self.columns):
            self.cell(row, place, field, label, NUMBER)
            if None in [self.cell(row, place, field, column, missing=True) for column in texts]:
                skipped += 1
            else:
                yield row
        report_skipped(skipped, field, self.path)
