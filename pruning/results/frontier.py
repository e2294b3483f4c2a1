"""The frontier of a study: all its results as one table (Markdown, CSV) and two plots (SVG).

python -m pruning.results.frontier outputs/compare
"""

import csv
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pruning.results.kept import draw, shares
from pruning.results.report import is_metric, quantity, titled
from pruning.results.result import Result, read, times, write_text

EQUAL = 0.03  # measured speedups within this share of the target count as equal
NOT_THE_RESULT = ("speedup", "seed", "study", "tracker", "cache", "dry_run")


@dataclass
class Point:
    """The runs of one method at one target; they differ in the seed and the task alone."""

    label: str
    target: float | None
    runs: list[Result]

    @property
    def reached(self) -> float:
        """Return the mean speedup."""
        return fmean(run.speedup.reached for run in self.runs)

    @property
    def basis(self) -> str:
        """Say how the speedups are known."""
        return " and ".join(sorted({run.speedup.basis for run in self.runs}))

    @property
    def equal(self) -> bool:
        """Say whether every run came as near to the target as a comparison asks for."""
        off = (abs(run.speedup.reached / self.target - 1) for run in self.runs if self.target)
        return all(share <= EQUAL for share in off)

    def values(self, metric: str) -> list[float]:
        """Return the metric of every run that measured it; none if one is not finite."""
        sides = (run.evaluation.pruned for run in self.runs)
        found = [side[metric] for side in sides if metric in side]
        return [] if None in found else found  # type: ignore[return-value]

    def average(self, tasks: set[str]) -> float | None:
        """Return GLUE's: the mean over tasks of the mean of a task's metrics; None without all."""
        of: dict[str, list[float]] = {task: [] for task in tasks}
        for run in self.runs:
            pruned = run.evaluation.pruned
            values = [v for key, v in pruned.items() if is_metric(key) and v is not None]
            of[task_of(run.config)] += [fmean(values)] if values else []
        return fmean(map(fmean, of.values())) if all(of.values()) else None

    def write(self, metric: str) -> str:
        """Write the mean of a metric; with half the range where there are several runs."""
        values = self.values(metric)
        if not values:
            asked = any(metric in run.evaluation.pruned for run in self.runs)
            return "not finite" if asked else ""
        text = quantity({metric: fmean(values)}, metric)
        return text if len(values) == 1 else f"{text} ± {(max(values) - min(values)) / 2:.2g}"


def write(study: Path) -> Path | None:
    """Write frontier.md, .csv and .svg, and kept.svg, of the results in a directory.

    None where there are none.
    """
    found = (read(path) for path in sorted(study.glob("*/result.json")))
    results = [result for result in found if result is not None]
    if not results:
        return None
    points = gather(results)
    runs = [(p, run, study / run.name / "allocation.json") for p in points for run in p.runs]
    rows = [(f"{times(p.target)}, {p.label}", shares(at)) for p, _, at in runs if at.exists()]
    if picture := draw(study.name, sorted(rows, key=lambda row: row[0].partition(", ")[::-1])):
        write_text(picture, study / "kept.svg")
    write_text(markdown(study.name, points), study / "frontier.md")
    write_text(table(points), study / "frontier.csv")
    write_text(plot(study.name, points), study / "frontier.svg")
    return study / "frontier.md"


def gather(results: Sequence[Result]) -> list[Point]:
    """Group runs that differ in the seed and the task alone, by target and then by label."""
    points: dict[tuple[str, float | None], Point] = {}
    for label, result in zip(labels(results), results, strict=True):
        target = result.speedup.target
        points.setdefault((label, target), Point(label, target, [])).runs.append(result)
    return sorted(points.values(), key=lambda p: (p.target or 0.0, p.label))


def labels(results: Sequence[Result]) -> list[str]:
    """Name every result by its method, and by whatever else sets it apart from the others.

    An option that another result does not have, since it is older, does not.
    """
    flat = [dict(_flat(result.config)) for result in results]
    names = [config["method.name"] for config in flat]
    found = []
    for name, config in zip(names, flat, strict=True):
        alike = [other for other, of in zip(flat, names, strict=True) if of == name]
        extra: dict[str, Any] = {}
        for key, value in config.items():
            group = key.split(".")[0]
            rivals = alike if group in ("method", "search") else flat
            if group == "task":  # tasks differ in many options
                rivals = [of for of in flat if of.get("task.name") == config.get("task.name")]
            if all(other.get(key, value) == value for other in rivals):
                continue
            if f"{group}.name" in config and any(
                other.get(f"{group}.name") != config[f"{group}.name"] for other in rivals
            ):
                extra[group] = config[f"{group}.name"]
            else:
                extra[key] = value
        found.append(", ".join([name, *(f"{key}={value}" for key, value in extra.items())]))
    return found


def _flat(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Walk the values of a config, each with its path; what is no part of a label is left out."""
    for key, value in config.items():
        if (not path and key in NOT_THE_RESULT) or f"{path}{key}" == "method.seed":
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def task_of(config: dict[str, Any]) -> str:
    """Return the name of the task of a job, "" without one."""
    return (config.get("task") or {}).get("name", "")


def dense_of(points: Sequence[Point], metric: str) -> Mapping[str, float | None]:
    """Return the numbers of the first dense model that was measured so."""
    sides = (run.evaluation.dense for p in points for run in p.runs)
    return next((side for side in sides if metric in side), {})


def metrics(points: Sequence[Point]) -> list[str]:
    """List what the models were evaluated on, perplexities first."""
    keys = dict.fromkeys(key for p in points for run in p.runs for key in run.evaluation.pruned)
    found = [key for key in keys if is_metric(key)]
    return sorted(found, key=lambda key: "perplexity" not in key)


def best(points: Sequence[Point], metric: str) -> Point | None:
    """Return the best of the points that are as fast as was asked for."""
    rivals = [p for p in points if p.equal and p.values(metric)]
    sign = 1 if "perplexity" in metric else -1
    return min(rivals, key=lambda p: sign * fmean(p.values(metric)), default=None)


def markdown(study: str, points: Sequence[Point]) -> str:
    """Return a table with a row per method and target, and who is best at each target."""
    keys = metrics(points)
    lines = [f"# {study}", "", "![frontier](frontier.svg)", ""]
    tasks = {task_of(run.config) for p in points for run in p.runs}
    heads = [titled(dense_of(points, key), key) for key in keys]
    heads += ["average of tasks"] if len(tasks) > 1 else []
    bases = {p.basis for p in points}
    speed = bases.pop() if len(bases) == 1 else "speedup"
    lines.append(f"| target | method | {speed} | {' | '.join(heads)} | parameters | runs |")
    lines.append("| --- | --- | ---: |" + " ---: |" * (len(heads) + 2))
    winners = []
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
    lines += ["", f"Dense, {points[0].runs[0].config['model']['name']}:", ""]
    lines += [f"- {key}: {quantity(dense_of(points, key), key)}" for key in keys]
    if winners:
        lines += ["", "Best at each target:", "", *winners]
    lines += ["", f"† more than {EQUAL:.0%} off the target: not compared."]
    if any(len(p.runs) > 1 for p in points):
        lines.append("± half the range over seeds, that is, over draws of the calibration text.")
    return "\n".join(lines) + "\n"


def table(points: Sequence[Point]) -> str:
    """Return a CSV with a row per run."""
    keys = metrics(points)
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    head = [
        "name",
        "label",
        "seed",
        "target",
        "predicted",
        "measured",
        "basis",
        "parameters",
        "seconds",
    ]
    rows.writerow([*head, "peak_host_gib", *(f"dense {key}" for key in keys), *keys])
    for p in points:
        for run in p.runs:
            speedup, evaluation = run.speedup, run.evaluation
            row = [run.name, p.label, run.config.get("seed"), p.target, speedup.predicted]
            row += [speedup.measured, speedup.basis, run.params.ratio, run.seconds.get("total")]
            row += [run.memory.peak_host_gib, *(evaluation.dense.get(key) for key in keys)]
            rows.writerow(row + [evaluation.pruned.get(key) for key in keys])
    return out.getvalue()


def plot(study: str, points: Sequence[Point]) -> str:
    """Return an SVG: each metric over the measured speedup, a line per method, dense a star.

    Where nothing was evaluated, the share of parameters that is left.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    keys = [key for key in metrics(points) if "perplexity" in key] or metrics(points)
    panels: list[str | None] = [*keys[:4]] or [None]
    bases = " or ".join(sorted({p.basis for p in points}))
    figure = Figure(figsize=(6.4 * len(panels), 4.8), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label in dict.fromkeys(p.label for p in points):
            runs = [run for p in points if p.label == label for run in p.runs]
            heights = [(run.speedup.reached, _height(run, key)) for run in runs]
            at = sorted((x, y) for x, y in heights if y is not None)
            axes.plot(*zip(*at, strict=True) if at else ([], []), marker="o", ms=4, label=label)
        dense = 1.0 if key is None else dense_of(points, key).get(key)
        if dense is not None:
            axes.plot([1], [dense], "k*", ms=10, label="dense")
            axes.axhline(dense, color="0.8", lw=0.8, zorder=0)
        if key and "perplexity" in key:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=f"{bases} speedup", ylabel=key or "parameters", title=study)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": study}):  # the same file for the same numbers
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    return out.getvalue()


def _height(run: Result, key: str | None) -> Any:
    return run.params.ratio if key is None else run.evaluation.pruned.get(key)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pruning.results.frontier outputs/<study>")
    report = write(Path(sys.argv[1]))
    if report is None:
        sys.exit(f"error: {sys.argv[1]} holds no result.json of a finished job; run some first")
    print(report.read_text())
