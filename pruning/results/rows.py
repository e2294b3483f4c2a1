"""What charts and the page show of every result, each under a title of its own."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning.results.kept import units
from pruning.results.points import Point, task_of
from pruning.results.result import Result, config_group, times
from pruning.system.environment import differences


@dataclass
class Row:
    """A result under a title that no other has."""

    title: str
    label: str  # of its method, and of what else sets it apart
    run: Result
    kept: dict[str, dict[int, tuple[int, int]]]  # by part and block: kept units, of how many

    @property
    def speedup(self) -> str:
        """Write the speedup with how it is known."""
        return f"{times(self.run.speedup.reached)} {self.run.speedup.basis}"


def rows_of(points: Sequence[Point], study: Path) -> list[Row]:
    """Return a row per result, those of a method together, by target."""
    gathered: list[Row] = []
    ordered = sorted(points, key=lambda p: p.label)  # stable: by target within a label
    pairs = [(p, run) for p in ordered for run in sorted(p.runs, key=_seed)]
    for (p, run), title in zip(pairs, titles(pairs), strict=True):
        allocation = study / run.name / "allocation.json"
        kept = units(allocation) if allocation.exists() else {}
        gathered.append(Row(title, p.label, run, kept))
    return gathered


def _seed(run: Result) -> tuple[str, int]:
    return task_of(run.config), run.config.get("seed") or 0


def titles(pairs: Sequence[tuple[Point, Result]]) -> Iterator[str]:
    """Name results by label and target, then by task and seed; by their run where alike."""
    said: list[str] = []
    for p, run in pairs:
        extra = [task_of(run.config), f"seed {run.config.get('seed')}"] if len(p.runs) > 1 else []
        said.append(", ".join([p.label, times(p.target), *filter(None, extra)]))
    often = Counter(said)
    for (_, run), title in zip(pairs, said, strict=True):
        yield title if often[title] == 1 else f"{title}, {run.name}"


def environments(rows: Sequence[Row]) -> dict[str, list[str | None]]:
    """Return by key, where results were not obtained alike, the value of each row.

    Besides the environment, the device and the type of the weights that were asked for.
    """
    told: list[dict[str, Any]] = []
    for row in rows:
        config = row.run.config
        asked = {"model": ("dtype",), "hardware": ("device",)}
        groups = {
            kind: {key: value for key, value in config_group(config, kind).items() if key in keys}
            for kind, keys in asked.items()
        }
        told.append(row.run.environment | groups)
    return differences(told)


def usual(values: Sequence[str | None]) -> str:
    """Return the most frequent value that is known, the first of several."""
    known = [value for value in values if value is not None]
    return Counter(known).most_common(1)[0][0]


def unusual(differing: dict[str, list[str | None]], index: int) -> list[str]:
    """List the keys in which the row of this index is not as most others are."""
    return [
        key
        for key, values in differing.items()
        if values[index] is not None and values[index] != usual(values)
    ]
