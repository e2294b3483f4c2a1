"""The table of the page: a row per result, cells that know the number they are sorted by."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from pruning.results.report import quantity
from pruning.results.result import times
from pruning.results.rows import Row, unusual

BEFORE = ("result", "Pareto", "target", "predicted", "speedup", "parameters")
AFTER = ("seconds", "peak GiB", "environment differs", "command")


def heads(metrics: Sequence[str]) -> str:
    """Return the cells of the head, each a button that sorts; lines may break within metrics."""
    names = (*BEFORE, *metrics, *AFTER)
    broken = (re.sub("([/_])", r"\1<wbr>", escape(name)) for name in names)
    return "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in broken)


def table_rows(
    rows: Sequence[Row],
    metrics: Sequence[str],
    best: Mapping[str, Sequence[str]],
    differing: dict[str, list[str | None]],
) -> str:
    """Return the rows; Pareto marks are those of the first metric."""
    first = best[metrics[0]] if metrics else ()
    return "\n".join(
        _row(row, metrics, row.run.name in first, unusual(differing, index))
        for index, row in enumerate(rows)
    )


def _row(row: Row, metrics: Sequence[str], pareto: bool, differs: Sequence[str]) -> str:
    run, speedup = row.run, row.run.speedup
    known = "" if speedup.basis == "measured" else f" ({speedup.basis})"
    head = f'<th scope="row" data-value="{escape(row.title)}">{escape(row.title)}'
    total = run.seconds.get("total")
    cells = [
        f"{head}<small>{escape(run.name)}</small></th>",
        _cell("◆" if pareto else "", int(pareto), "mark"),
        _cell(times(speedup.target), speedup.target),
        _cell(times(speedup.predicted), speedup.predicted),
        _cell(times(speedup.reached) + known, speedup.reached),
        _cell(f"{run.params.ratio:.1%}", run.params.ratio),
    ]
    pruned = run.evaluation.pruned
    cells += [_cell(quantity(pruned, metric), pruned.get(metric)) for metric in metrics]
    cells += [
        _cell("" if total is None else f"{total:.0f}", total),
        _cell(f"{run.memory.peak_host_gib:.2f}", run.memory.peak_host_gib),
        _cell(", ".join(differs), ", ".join(differs), "text differs"),
        _command(run.command),
    ]
    marks = f'data-name="{escape(run.name)}"' + (' class="pareto"' if pareto else "")
    return f"<tr {marks}>{''.join(cells)}</tr>"


def _cell(text: str, value: float | str | None, kind: str = "") -> str:
    """Return a cell; those without a value are sorted behind all others."""
    known = "" if value is None else value
    marked = f' class="{kind}"' if kind else ""
    return f'<td{marked} data-value="{escape(str(known))}">{escape(text)}</td>'


def _command(command: str) -> str:
    said = "not recorded: see config.yaml"
    if command:
        said = f"<details><summary>show</summary><code>{escape(command)}</code></details>"
    return f'<td class="text" data-value="{escape(command)}">{said}</td>'
