"""Results as points: runs that differ in the seed and the task alone, with a label in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pruning.results.report import is_metric, quantity, rounded
from pruning.results.result import Numbers, Result, config_group, read
from pruning.system.environment import flatten

EQUAL = 0.03  # measured speedups within this share of the target count as equal
SEEDS = ("method.seed", "task.seed")
NOT_THE_RESULT = ("speedup", "seed", "study", "tracker", "cache", "verify_cache", "dry_run")


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
        values = [side[metric] for side in sides if metric in side]
        known = [value for value in values if value is not None]
        return known if len(known) == len(values) else []

    def average(self, tasks: set[str]) -> float | None:
        """Return GLUE's: the mean over tasks of the mean of a task's metrics; None without all."""
        by_task: dict[str, list[float]] = {task: [] for task in tasks}
        for run in self.runs:
            pruned = run.evaluation.pruned
            values = [v for key, v in pruned.items() if is_metric(key) and v is not None]
            by_task[task_of(run.config)] += [fmean(values)] if values else []
        return fmean(map(fmean, by_task.values())) if all(by_task.values()) else None

    def centre(self, metric: str) -> tuple[float, float] | None:
        """Return the mean speedup and the mean metric of the runs that measured it, or None."""
        runs = [run for run in self.runs if metric in run.evaluation.pruned]
        if not (values := self.values(metric)):
            return None
        return fmean(run.speedup.reached for run in runs), fmean(values)

    def spread(self, metric: str) -> float | None:
        """Return half the range of a metric over runs, or its standard error where that is more."""
        if not (values := self.values(metric)):
            return None
        errors = (run.evaluation.pruned.get(f"{metric}_stderr") for run in self.runs)
        spreads = [error for error in errors if error is not None]
        if len(values) > 1:
            spreads.append((max(values) - min(values)) / 2)
        return max(spreads, default=None)

    def write(self, metric: str) -> str:
        """Write the mean of a metric, and how far it may be off."""
        values = self.values(metric)
        if not values:
            asked = any(metric in run.evaluation.pruned for run in self.runs)
            return "not finite" if asked else ""
        text, spread = quantity({metric: fmean(values)}, metric), self.spread(metric)
        return text if spread is None else f"{text} ± {rounded(spread)}"


def read_results(study: Path) -> list[Result]:
    """Read the results of all finished jobs in a directory, in the order of their names."""
    results = (read(path) for path in sorted(study.glob("*/result.json")))
    return [result for result in results if result is not None]


def no_results(study: Path) -> ValueError:
    """Return the error of a study that has none."""
    state = "holds no result.json of a finished job" if study.is_dir() else "is no directory"
    return ValueError(f"{study} {state}: give the directory of jobs, outputs/<study>")


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
    flat = [_options(result.config) for result in results]
    names = [config["method.name"] for config in flat]
    written: list[str] = []
    for name, config in zip(names, flat, strict=True):
        alike = [other for other, other_name in zip(flat, names, strict=True) if other_name == name]
        extra: dict[str, Any] = {}
        for key, value in config.items():
            group = key.split(".")[0]
            rivals = alike if group in ("method", "search") else flat
            if group == "task":  # tasks differ in many options
                task = config.get("task.name")
                rivals = [other for other in flat if other.get("task.name") == task]
            if all(other.get(key, value) == value for other in rivals):
                continue
            if f"{group}.name" in config and any(
                other.get(f"{group}.name") != config[f"{group}.name"] for other in rivals
            ):
                extra[group] = config[f"{group}.name"]
            else:
                extra[key] = value
        written.append(", ".join([name, *(f"{key}={value}" for key, value in extra.items())]))
    return written


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config by path, without what is no part of a label."""
    return {
        key: value
        for key, value in flatten(config)
        if key.split(".")[0] not in NOT_THE_RESULT and key not in SEEDS
    }


def task_of(config: dict[str, Any]) -> str:
    """Return the name of the task of a job, "" without one."""
    return config_group(config, "task").get("name", "")


def dense_of(points: Sequence[Point], metric: str) -> Numbers:
    """Return the numbers of the first dense model that was measured so."""
    for p in points:
        for run in p.runs:
            if metric in run.evaluation.dense:
                return run.evaluation.dense
    return {}


def metrics(points: Sequence[Point]) -> list[str]:
    """List what the models were evaluated on, perplexities first."""
    keys = dict.fromkeys(key for p in points for run in p.runs for key in run.evaluation.pruned)
    metrics = [key for key in keys if is_metric(key)]
    return sorted(metrics, key=lambda key: not is_cost(key))


def is_cost(metric: str) -> bool:
    """Tell metrics of which less is better."""
    return "perplexity" in metric or "bits_per_byte" in metric


def best(points: Sequence[Point], metric: str) -> Point | None:
    """Return the best of the points that are as fast as was asked for."""
    rivals = [p for p in points if p.equal and p.values(metric)]
    sign = 1 if is_cost(metric) else -1
    return min(rivals, key=lambda p: sign * fmean(p.values(metric)), default=None)
