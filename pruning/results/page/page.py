"""The page: charts, a table that sorts, differences between environments, in one HTML file."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from pruning.results.charts.lines import kept, seconds, speedups
from pruning.results.charts.quality import dots, quality
from pruning.results.page.table import heads, table_rows
from pruning.results.page.vega import fitted, library
from pruning.results.pareto import pareto
from pruning.results.points import Point, metrics
from pruning.results.rows import Row, environments, usual

HERE = Path(__file__).parent


def page(study: str, rows: Sequence[Row], points: Sequence[Point]) -> str:
    """Return a page about all results of a study, whole: it loads nothing and sends nothing.

    Its content security policy allows these scripts and no other, and no connection.
    """
    keys = metrics(points)
    best = {key: sorted(pareto([row.run for row in rows], key)) for key in keys}
    differing = environments(rows)
    charts: dict[str, Any] = {}

    def place(name: str, title: str, chart: Any, note: str = "") -> str:
        charts[name] = fitted(chart)
        said = f"<h3>{escape(title)}</h3>" if title else ""
        return f'<div>{said}<div class="chart" id="{name}"></div>{note}</div>'

    panels = (
        place(
            f"quality-{i}",
            key,
            quality(rows, points, key, clicks=True).properties(height=280),
            missing(rows, key),
        )
        for i, key in enumerate(keys)
    )
    pictures = (
        place(f"kept-{i}", part, chart) for i, (part, chart) in enumerate(kept(rows).items())
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    content = {
        "study": escape(study),
        "summary": escape(summary(rows)),
        "quality": "\n".join(panels) or "<p>Nothing was evaluated.</p>",
        "metrics": "".join(f"<option>{escape(key)}</option>" for key in keys),
        "head": heads(keys),
        "rows": table_rows(rows, keys, best, differing),
        "speedups": place("speedups", "", speedups(rows)),
        "kept": "\n".join(pictures) or "<p>No result has an allocation.json.</p>",
        "seconds": place("seconds", "", seconds(rows)),
        "environment": differences_table(rows, differing),
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "policy": policy(library(), script),
        "library": library(),
        "script": script,
    }
    data = embedded({"charts": charts, "pareto": best})
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(content, data=data)


def policy(*scripts: str) -> str:
    """Return a content security policy that allows these scripts by their hashes, and no network.

    Vega sets styles of elements; nothing but styles may stand inline otherwise.
    """
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(data: Any) -> str:
    """Return JSON that cannot end the <script> element that it stands in."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def counted(unit: str) -> str:
    """Say in what a speedup is counted; nothing where it is of times."""
    return "" if unit == "ms" else f" in {unit}"


def summary(rows: Sequence[Row]) -> str:
    """Say what there is, in one sentence."""
    runs = [row.run for row in rows]
    models, hardware, settings, bases = (
        ", ".join(dict.fromkeys(values))
        for values in (
            (str(run.config["model"]["name"]) for run in runs),
            (str(run.environment.get("gpu") or run.environment.get("cpu")) for run in runs),
            (run.latency.text() for run in runs),
            (run.speedup.basis + counted(run.latency.unit) for run in runs),
        )
    )
    count = "1 result" if len(runs) == 1 else f"{len(runs)} results"
    return f"{count} of {models}; speedups {bases}, {settings}; jobs ran on {hardware}."


def missing(rows: Sequence[Row], metric: str) -> str:
    """Say which results a chart cannot show since the metric is not finite."""
    drawn = {dot["name"] for dot in dots(rows, metric)}
    left = [r.title for r in rows if metric in r.run.evaluation.pruned and r.title not in drawn]
    return f'<p class="note">Not finite: {escape("; ".join(left))}.</p>' if left else ""


def differences_table(rows: Sequence[Row], differing: dict[str, list[str | None]]) -> str:
    """Tabulate by key what is usual, and which results have what else."""
    if not differing:
        return "<p>All results were obtained in the same environment.</p>"
    lines = ["<tr><th>key</th><th>most results</th><th>others</th></tr>"]
    for key, values in differing.items():
        common = usual(values)
        others: dict[str, list[str]] = {}
        for row, value in zip(rows, values, strict=True):
            if value not in (common, None):
                others.setdefault(str(value), []).append(row.title)
        told = "<br>".join(
            f'<span class="differs">{escape(value)}</span>: {escape("; ".join(titles))}'
            for value, titles in others.items()
        )
        said = f'<td class="text">{escape(common)}</td><td class="text">{told}</td>'
        lines.append(f"<tr><th>{escape(key)}</th>{said}</tr>")
    note = "These keys differ; all others are the same. The table of results names them per row."
    return f'<p>{note}</p><div class="wide"><table>{"".join(lines)}</table></div>'
