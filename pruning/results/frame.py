"""Results of jobs as a pandas table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.results.result import Result, read

if TYPE_CHECKING:
    from pandas import DataFrame


def load_results(directory: str | Path) -> "DataFrame":
    """Read every result.json at or below a directory, such as `outputs/frontier`, a row each.

    Metrics are columns `dense/<metric>` and `pruned/<metric>`. ValueError where there is no result.
    """
    from pandas import DataFrame

    where = Path(directory).expanduser()
    results = [result for path in sorted(where.rglob("result.json")) if (result := read(path))]
    if not results:
        raise ValueError(f"{where} holds no result.json of a finished job: run some first")
    return DataFrame([_row(result) for result in results])


def _row(result: Result) -> dict[str, Any]:
    """Flatten a result."""
    config, speedup, quality = result.config, result.speedup, result.evaluation
    return {
        "name": result.name,
        "study": result.study,
        "model": config["model"]["name"],
        "method": config["method"]["name"],
        "hardware": config["hardware"]["name"],
        "runtime": result.latency.runtime,
        "target": speedup.target,
        "predicted": speedup.predicted,
        "measured": speedup.measured,
        "parameters": result.params.pruned,
        "dense_parameters": result.params.dense,
        **{f"dense/{metric}": value for metric, value in quality.dense.items()},
        **{f"pruned/{metric}": value for metric, value in quality.pruned.items()},
        "seconds": result.seconds["total"],
    }
