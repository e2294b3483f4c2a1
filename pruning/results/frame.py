"""Results of jobs as a pandas table."""

# pandas has no types
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.results.points import labels, no_results, task_of
from pruning.results.result import Result, config_group, read

if TYPE_CHECKING:
    from pandas import DataFrame


def load_results(directory: str | Path) -> "DataFrame":
    """Read every result.json at or below a directory, such as `outputs/frontier`, a row each.

    Metrics are columns `dense/<metric>` and `pruned/<metric>`; NaN stands for what was not measured
    or is not finite. ValueError where there is no result.
    """
    where = Path(directory).expanduser()
    results = [result for path in sorted(where.rglob("result.json")) if (result := read(path))]
    if not results:
        raise no_results(where)
    return frame(results)


def frame(results: Sequence[Result]) -> "DataFrame":
    """Return a row per result, in this order."""
    from pandas import DataFrame

    rows = [_row(r, label) for r, label in zip(results, labels(results), strict=True)]
    numbers = {key for row in rows for key in row if key.startswith(("dense/", "pruned/"))}
    kinds = dict.fromkeys([*numbers, "target", "predicted", "measured"], "float64")
    # any of them may be missing everywhere
    return DataFrame(rows).astype(kinds | {"seed": "Int64"})


def to_csv(results: Sequence[Result], columns: dict[str, str]) -> str:
    """Return a CSV with a row per result, of these columns of `frame` by names of their own."""
    table = frame(results).reindex(columns=list(columns)).rename(columns=columns)
    return table.to_csv(index=False, lineterminator="\n")


def _row(result: Result, label: str) -> dict[str, Any]:
    """Flatten a result; `label` names its method, and what sets it apart from the others."""
    config, speedup, quality = result.config, result.speedup, result.evaluation
    return {
        "name": result.name,
        "study": result.study,
        **{g: config_group(config, g).get("name") for g in ("model", "method", "hardware")},
        "runtime": result.latency.runtime,
        "task": task_of(config),
        "seed": config.get("seed"),
        "label": label,
        "target": speedup.target,
        "predicted": speedup.predicted,
        "measured": speedup.measured,
        "speedup": speedup.reached,
        "basis": speedup.basis,
        "parameters": result.params.pruned,
        "dense_parameters": result.params.dense,
        "parameters_ratio": result.params.ratio,
        "seconds": result.seconds.get("total"),
        "peak_host_gib": result.memory.peak_host_gib,
        **{f"dense/{metric}": value for metric, value in quality.dense.items()},
        **{f"pruned/{metric}": value for metric, value in quality.pruned.items()},
    }
