"""Tables of papers beside ours as Markdown: for the command line, and docs/reproduction.md."""

import shlex
import textwrap
from collections.abc import Sequence

from pruning.reproduction.needs import H100, REACHED, needs
from pruning.reproduction.tables import FOLDER, INSTALLED, Ours, Published, Table, load, names

LAUNCH = ["pruning-launch"] if FOLDER == INSTALLED else ["python", "launch.py"]
HEAD = f"""# Published tables beside ours

This page is written by `make docs` from the files in docs/reproduction. The same is printed by

    python -m pruning reproduce                  # which tables there are, and what each takes
    python -m pruning reproduce slimgpt-llama7b  # one of them, with the commands that make ours
    python -m pruning reproduce slimgpt-llama7b --add outputs/slimgpt_llama7b/JOB/result.json

The last one adds our cells of a finished job. Published numbers are those that were read, and each
names where. Numbers that circulate without a copy that could be read are left out: so is FLOP,
whose recipe is `experiment=flop_bert_glue`.

## The tables

Disk, memory and hours are estimates for all jobs of a table, without a cache. Disk holds the
weights, a checkpoint, and moments or the checkpoints of a training. Memory is that of a dry run, or
of a training; an H100 has {H100} GiB. Hours are those of passes on an H100, assumed to reach
{REACHED:.0%} of its peak. As in `dry_run=true`, timing, solves, the fine-tuning of encoders and
evaluation come on top.
"""


def page() -> str:
    """Return docs/reproduction.md."""
    tables = [load(name) for name in names()]
    return "\n".join([HEAD, summary(tables), *(f"\n{section(table)}" for table in tables)]) + "\n"


def summary(tables: Sequence[Table]) -> str:
    """Return a row per table: what it is, what was run, what it takes."""
    rows = [["name", "table", "run", "disk, GiB", "memory, GiB", "hours of passes, H100"]]
    for table in tables:
        jobs, took = table.jobs(), needs(table)
        run = sum(row.name in table.ours for row in jobs)
        many = " (no H100 holds it)" if took.memory > H100 else ""
        rows.append(
            [
                *(table.name, table.title, f"{run} of {len(jobs)} jobs", f"{took.disk:.0f}"),
                *(f"{took.memory:.0f}{many}", f"{took.hours:.2f}"),
            ]
        )
    return _markdown(rows, left=3)


def section(table: Table) -> str:
    """Return a table with the commands that make ours, its sources, and how protocols differ."""
    jobs = [shlex.join([*LAUNCH, *table.words(row)]) for row in table.jobs()]
    sources = [_said(table, key) for key in table.sources]
    parts = [
        *(f"## {table.name}", _wrapped(f"{table.title}. {_state(table)}")),
        "\n".join(f"    {job}" for job in jobs),
        _markdown(_rows(table), left=2),
        *("Sources:", "\n".join(map(_item, sources))),
        *("Differences of protocol:", "\n".join(map(_item, table.differences))),
    ]
    return "\n\n".join(parts)


def _state(table: Table) -> str:
    """Say how many jobs were run, and what the others need."""
    jobs = table.jobs()
    left = sum(row.name not in table.ours for row in jobs)
    if not left:
        return f"All {len(jobs)} jobs were run."
    took = needs(table)
    return (
        f"Not run: {left} of {len(jobs)} jobs. All of them need about {took.disk:.0f} GiB of disk, "
        f"{took.memory:.0f} GiB of memory, and {took.hours:.2f} hours of passes on an H100."
    )


def _said(table: Table, key: str) -> str:
    """Say what a source is, where it was read, and what it says beside its cells."""
    source = table.sources[key]
    known = [source.title, f"arXiv:{source.arxiv}" if source.arxiv else "", source.table or ""]
    notes = [f"It says: {note.text}" for note in table.notes if note.source == key]
    return " ".join([f"{', '.join(filter(None, known))}. Read in: {source.read}.", *notes])


def _rows(table: Table) -> list[list[str]]:
    """Return the cells as text: what each source has of a row, then what we have."""
    rows = [["", "from", *(column.title for column in table.columns.values())]]
    for row in table.rows:
        lines = [_cells(table, table.sources[each.source].title, each) for each in row.published]
        if ours := table.ours.get(row.name):
            lines.append(_cells(table, _provenance(ours), ours))
        elif row.dense or row.overrides is not None:
            lines.append(["ours: not run", *[""] * len(table.columns)])
        rows += [["" if index else row.name, *line] for index, line in enumerate(lines)]
    return rows


def _cells(table: Table, source: str, given: Published | Ours) -> list[str]:
    values = (given.cells.get(column) for column in table.columns)
    return [source, *("" if value is None else f"{value:.7g}" for value in values)]


def _provenance(ours: Ours) -> str:
    """Say in a cell what ours came from."""
    versions = ", ".join(f"{name} {version}" for name, version in ours.versions.items())
    said = ["ours", ours.date, ours.machine, versions, f"result {ours.sha256[:12]} of {ours.job}"]
    other = [f"with {'; '.join(ours.differs)}"] if ours.differs else []
    return ", ".join([*said, *other]).replace("|", "\\|")


def _markdown(rows: list[list[str]], left: int) -> str:
    """Return a Markdown table whose columns stand below each other in a terminal too."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]

    def line(cells: list[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in pairs]
        return f"| {' | '.join(padded)} |"

    rules = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), f"| {' | '.join(rules)} |", *map(line, rows[1:])])


def _item(text: str) -> str:
    return _wrapped(text, "- ", "  ")


def _wrapped(text: str, first: str = "", further: str = "") -> str:
    wrapper = textwrap.TextWrapper(100, initial_indent=first, subsequent_indent=further)
    wrapper.break_on_hyphens = wrapper.break_long_words = False
    return wrapper.fill(text)


if __name__ == "__main__":
    print(page(), end="")
