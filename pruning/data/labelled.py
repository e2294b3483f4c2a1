"""Texts with labels."""

from dataclasses import dataclass
from itertools import islice

from omegaconf import MISSING

from pruning.data.rows import Rows
from pruning.system.cache import Cache


@dataclass
class Labelled(Rows):
    """Texts, or pairs of texts, with labels."""

    columns: list[str] = MISSING  # of the text, or of the two
    label: str = "label"  # column of class numbers, or of the number that is predicted

    def read(self, cache: Cache, field: str, limit: int | None = None) -> list[dict]:
        """Return the rows; ValueError where the file or a column is not there."""
        needed = [("columns", column) for column in self.columns] + [("label", self.label)]
        return list(islice(self.rows(cache, field, needed), limit))
