"""Which results of a study are worth their speed: those that nothing else beats."""

from collections.abc import Sequence
from typing import Any

from pruning.results.points import is_cost, task_of
from pruning.results.result import Result, config_group


def pareto(results: Sequence[Result], metric: str) -> set[str]:
    """Return the names of the results that none dominates in speedup and a metric.

    One dominates another where it is at least as fast and at least as good, and either by more.
    Only results that can be compared do (see `setting`); so does their dense model, at 1x.
    """
    at = {r.name: point for r in results if (point := place(r, metric)) is not None}
    rivals: dict[Any, list[tuple[float, float]]] = {}
    for r in results:
        if r.name in at:
            rivals.setdefault(setting(r), []).append(at[r.name])
        if (dense := r.evaluation.dense.get(metric)) is not None:
            rivals.setdefault(setting(r), []).append((1.0, worth(dense, metric)))
    return {
        r.name
        for r in results
        if r.name in at and not any(dominates(o, at[r.name]) for o in rivals[setting(r)])
    }


def setting(result: Result) -> tuple[str, ...]:
    """Return what results have in common that can be compared: model, hardware, phase and size."""
    config, latency = result.config, result.latency
    names = (str(config_group(config, kind).get("name")) for kind in ("model", "hardware"))
    return (*names, task_of(config), latency.text(), latency.unit, result.speedup.basis)


def place(result: Result, metric: str) -> tuple[float, float] | None:
    """Return (speedup, worth); None where the metric is not there or not finite."""
    value = result.evaluation.pruned.get(metric)
    return None if value is None else (result.speedup.reached, worth(value, metric))


def worth(value: float, metric: str) -> float:
    """Turn a metric so that more is better."""
    return -value if is_cost(metric) else value


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Say whether one (speedup, worth) is nowhere less than another, and somewhere more."""
    return one != other and one[0] >= other[0] and one[1] >= other[1]
