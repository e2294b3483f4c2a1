"""Published tables as data: cells with their sources, the recipe that makes ours, our cells."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf

from pruning.composition import compose
from pruning.experiment import BESIDE_THE_RESULT, NOT_THE_RESULT, Experiment
from pruning.results.result import Result, read
from pruning.system.cache import file_sha256
from pruning.system.environment import differences
from pruning.system.files import to_json, write_text

INSTALLED = Path(__file__).parent / "published"
FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / "docs" / "reproduction"
OURS = "\n# written by `python -m pruning reproduce NAME --add RESULT`\n"
VERSIONS = ("torch", "transformers", "lm_eval")
SPEEDUP = "speedup"  # a metric: what was measured, end to end


@dataclass
class Source:
    """Where published numbers are from, and where they were read."""

    title: str = MISSING
    read: str = MISSING  # the page, file or card in which the numbers were read
    arxiv: str | None = None  # null: not known
    table: str | None = None  # its number there; null: not known

    def __post_init__(self) -> None:
        if not self.read.strip() or "recalled" in self.read.lower():
            raise ValueError(
                f"read={self.read!r} of {self.title!r}: numbers from memory are not published "
                "ones; say where they were read, or leave them out"
            )


@dataclass
class Column:
    """A kind of number, and which metric of a result is ours."""

    title: str = MISSING
    metric: str | None = None  # of `evaluation`, or `speedup`; null: ours is not measured
    scale: float = 1  # ours times this has the unit of the column
    decimals: int = 2  # that ours is rounded to


@dataclass
class Published:
    """Cells of a row as one source has them."""

    source: str = MISSING  # key of `sources`
    cells: dict[str, float] = MISSING  # by column


@dataclass
class Row:
    """One model of a table."""

    name: str = MISSING
    published: list[Published] = MISSING
    overrides: list[str] | None = None  # of the recipe, that make ours; null: no job of ours
    dense: bool = False  # every job of the table measures this one


@dataclass
class Note:
    """What a source says in words, costs for example."""

    text: str = MISSING
    source: str = MISSING  # key of `sources`


@dataclass
class Ours:
    """Our cells of a row, and what they came from."""

    cells: dict[str, float] = MISSING  # by column
    job: str = MISSING  # name of the result
    sha256: str = MISSING  # of its result.json
    date: str = MISSING  # when that file was written
    machine: str = MISSING
    versions: dict[str, str] = MISSING
    differs: list[str] = field(default_factory=list)  # fields with other values than the recipe


@dataclass(eq=False)  # each is itself alone, so what is known of it can be cached
class Table:
    """A published table; the name is that of its file."""

    name: str = MISSING
    title: str = MISSING
    experiment: str = MISSING  # the recipe, in conf/experiment
    model: dict[str, Any] = MISSING  # shapes of the dense model, which estimates are from
    columns: dict[str, Column] = MISSING
    sources: dict[str, Source] = MISSING
    rows: list[Row] = MISSING
    differences: list[str] = MISSING  # between the protocols, in words
    notes: list[Note] = field(default_factory=list)
    ours: dict[str, Ours] = field(default_factory=dict)  # by name of the row

    def __post_init__(self) -> None:
        for row in self.rows:
            for published in row.published:
                self._check(published.source, self.sources, f"source of {row.name!r}")
                for column in published.cells:
                    self._check(column, self.columns, f"column of {row.name!r}")
        for note in self.notes:
            self._check(note.source, self.sources, "source of a note")
        for name in self.ours:
            self._check(name, [row.name for row in self.rows], "row of ours")

    def _check(self, key: str, known: Any, what: str) -> None:
        if key not in known:
            raise ValueError(f"{self.name}.yaml: {what}: {key!r} is none of {', '.join(known)}")

    def jobs(self) -> list[Row]:
        """Return the rows that a job of ours makes."""
        return [row for row in self.rows if row.overrides is not None]

    def words(self, row: Row) -> list[str]:
        """Return the overrides of the job that makes our cells of a row."""
        return [f"experiment={self.experiment}", *(row.overrides or [])]


def names() -> list[str]:
    """List the tables that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Table:
    """Read a table; ValueError where there is none of this name, or its file is not one."""
    if name not in names():
        raise ValueError(f"there is no table {name!r}: choose one of {', '.join(names())}")
    given = OmegaConf.load(FOLDER / f"{name}.yaml")
    table = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Table), {"name": name}, given))
    assert isinstance(table, Table)
    return table


def add(table: Table, path: Path, name: str | None = None) -> Row:
    """Add our cells of a finished job to a table and its file, those of the dense model too.

    Without the name of a row it is that whose recipe the job ran. ValueError where it ran none:
    then the name is needed, and the cells say what differs.
    """
    if (result := read(path)) is None:
        raise ValueError(f"{path} is no result.json of a finished job: give one")
    row, differs = _row_of(table, result, path, name)
    for each in (row, *(row for row in table.rows if row.dense)):
        if cells := _cells(table, result, each.dense):
            table.ours[each.name] = Ours(cells, **_provenance(result, path), differs=differs)
        elif each is row:
            raise ValueError(f"{path} has none of the metrics of {table.name}: run its suite")
    _write(table)
    return row


def _row_of(table: Table, result: Result, path: Path, name: str | None) -> tuple[Row, list[str]]:
    """Return the row that a result is of, and how its config differs from the recipe."""
    jobs = {row.name: row for row in table.jobs()}
    if name is not None and name not in jobs:
        raise ValueError(f"--row {name!r} is no row of {table.name} with a job: {', '.join(jobs)}")
    tried = [jobs[name]] if name is not None else [*jobs.values()]
    differs = [(row, _differing(compose(table.words(row)), result)) for row in tried]
    row, least = min(differs, key=lambda pair: len(pair[1]))
    if least and name is None:
        raise ValueError(
            f"{path} is a job of no row of {table.name}; the nearest, {row.name!r}, has other "
            f"values than {', '.join(least)}: give --row to add it with these differences"
        )
    return row, least


def _differing(recipe: Experiment, result: Result) -> list[str]:
    """List the fields of a result's config that have other values than in the recipe.

    Of places on a machine only the last part is told.
    """
    plain = json.loads(to_json(asdict(recipe)))  # as a result's file has it
    values = differences([_semantic(plain), _semantic(result.config)])
    return [
        f"{key}={Path(str(pair[1])).name if str(pair[1]).startswith('/') else pair[1]}"
        for key, pair in values.items()
    ]


def _semantic(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a config what changes no result."""
    kept = {key: value for key, value in config.items() if key not in NOT_THE_RESULT}
    for group, fields in BESIDE_THE_RESULT.items():
        kept[group] = {k: v for k, v in kept[group].items() if k not in fields}
    return kept


def _cells(table: Table, result: Result, dense: bool) -> dict[str, float]:
    """Return our numbers by column, of the pruned or of the dense model."""
    measured = result.evaluation.dense if dense else result.evaluation.pruned
    cells: dict[str, float] = {}
    for key, column in table.columns.items():
        speedup = None if dense else result.speedup.measured
        value = speedup if column.metric == SPEEDUP else measured.get(column.metric or "")
        if value is not None:
            cells[key] = round(value * column.scale, column.decimals)
    return cells


def _provenance(result: Result, path: Path) -> dict[str, Any]:
    """Say what a result came from."""
    there, packages = result.environment, result.environment.get("packages", {})
    return {
        "job": result.name,
        "sha256": file_sha256(path),
        "date": datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat(),
        "machine": there.get("gpu") or f"{there.get('cpu')}, {there.get('threads')} threads",
        "versions": {name: packages[name] for name in VERSIONS if packages.get(name)},
    }


def _write(table: Table) -> None:
    """Write our cells at the end of a table's file, whole or not at all; the rest stays."""
    path = FOLDER / f"{table.name}.yaml"
    ours = {"ours": {name: asdict(cells) for name, cells in table.ours.items()}}
    text = yaml.safe_dump(ours, sort_keys=False, allow_unicode=True, width=100)
    write_text(path.read_text().partition(OURS)[0] + OURS + text, path)
