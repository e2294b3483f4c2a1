"""All results of a study as a table: Markdown with a row per point, CSV with a row per run."""

import math
from collections.abc import Sequence
from statistics import fmean

from pruning.results.frame import to_csv
from pruning.results.points import EQUAL, Point, best, dense_of, metrics, task_of
from pruning.results.report import quantity, titled
from pruning.results.result import times


def markdown(study: str, points: Sequence[Point]) -> str:
    """Return a table with a row per method and target, and who is best at each target."""
    keys = metrics(points)
    lines = [f"# {study}", "", "![frontier](frontier.svg)", ""]
    tasks = {task_of(run.config) for p in points for run in p.runs}
    heads = [titled(dense_of(points, key), key) for key in keys]
    heads += ["average of tasks"] if len(tasks) > 1 else []
    bases = {p.basis for p in points}
    speed = bases.pop() if len(bases) == 1 else "speedup"
    lines.append(f"| {' | '.join(['target', 'method', speed, *heads, 'parameters', 'runs'])} |")
    lines.append("| --- | --- | ---: |" + " ---: |" * (len(heads) + 2))
    winners: list[str] = []
    for target in dict.fromkeys(p.target for p in points):
        rivals = [p for p in points if p.target == target]
        champions = {key: best(rivals, key) for key in keys}
        if keys:
            rivals.sort(key=lambda p: fmean(p.values(keys[0]) or [math.inf]))
        for p in rivals:
            cells = [f"**{p.write(key)}**" if p is champions[key] else p.write(key) for key in keys]
            if len(tasks) > 1:
                mean = p.average(tasks)
                cells.append("" if mean is None else f"{mean:.3f}")
            mark = "" if p.equal else " †"
            left = fmean(run.params.ratio for run in p.runs)
            known = "" if p.basis == "measured" else f" ({p.basis})"
            speedup = f"{times(p.reached)}{known}{mark}"
            row = [times(p.target), p.label, speedup, *cells, f"{left:.1%}"]
            lines.append(f"| {' | '.join([*row, str(len(p.runs))])} |")
        winners += [
            f"- {times(target)}, {key}: {p.label} ({p.write(key)})"
            for key, p in champions.items()
            if p is not None and len(rivals) > 1
        ]
    if keys:
        lines += ["", f"Dense, {points[0].runs[0].config['model']['name']}:", ""]
        lines += [f"- {key}: {quantity(dense_of(points, key), key)}" for key in keys]
    if winners:
        lines += ["", "Best at each target:", "", *winners]
    lines.append("")
    if not all(p.equal for p in points):
        lines.append(f"† more than {EQUAL:.0%} off the target: not compared.")
    if any(p.spread(key) is not None for p in points for key in keys):
        lines.append(
            "± one standard error, or half the range over seeds (draws of the text, and what was "
            "trained on them) where that is more."
        )
    return "\n".join(lines) + "\n"


COLUMNS = {  # of frontier.csv, by those of the frame
    **{name: name for name in ("name", "label", "seed", "target", "predicted", "measured")},
    "basis": "basis",
    "parameters_ratio": "parameters",
    "seconds": "seconds",
    "peak_host_gib": "peak_host_gib",
}


def table(points: Sequence[Point]) -> str:
    """Return a CSV with a row per run."""
    keys = metrics(points)
    columns = COLUMNS | {f"dense/{key}": f"dense {key}" for key in keys}
    columns |= {f"pruned/{key}": key for key in keys}
    return to_csv([run for p in points for run in p.runs], columns)
