"""What a W&B run holds: of a job its numbers, curves and files; of a study the frontier."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.results.result import Result

if TYPE_CHECKING:
    from wandb import Run

    from pruning.results.points import Point

FILES = ("result.json", "allocation.json", "latency.json", "config.yaml")


def log_job(run: "Run", result: Result, directory: Path, checkpoint: bool) -> None:
    """Show a result: curves first, then what each block kept, the summary, and the files."""
    import wandb

    healing = result.recovery.get("curve", [])
    curves = (("training", result.training), ("search", result.search), ("recovery", healing))
    for kind, entries in curves:
        run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
        for entry in entries:
            run.log({f"{kind}/{key}": value for key, value in entry.items()})
    run.define_metric("stages/*", step_metric="stages/step")
    for step, (stage, seconds) in enumerate(result.seconds.items()):
        run.log({"stages/step": step, f"stages/{stage}_s": seconds})
    run.log({"per_layer/kept": kept(result)})
    for key, number in summary(result).items():
        run.summary[key] = number
    artifact = wandb.Artifact(result.name, type="result")
    for path in (directory / name for name in FILES):
        if path.exists():
            artifact.add_file(str(path))
    run.log_artifact(artifact)
    if checkpoint:
        model = wandb.Artifact(f"{result.name}-model", type="model")
        model.add_dir(str(directory / "model"))
        run.log_artifact(model)


def log_study(run: "Run", points: "Sequence[Point]", directory: Path) -> None:
    """Show a study: every number over the speedup, all results in one table, the plots."""
    import wandb

    bases = dict.fromkeys(result.speedup.basis for point in points for result in point.runs)
    for basis in bases:
        run.define_metric(f"speedup/{basis}")
        run.define_metric("frontier/*", step_metric=f"speedup/{basis}")
    results = [(point.label, result) for point in points for result in point.runs]
    rows = [{"run": r.name, "method": label, **summary(r)} for label, r in results]
    for label, result in sorted(results, key=lambda pair: pair[1].speedup.reached):
        metrics = {k: v for k, v in summary(result).items() if k.startswith("eval/")}
        named = {f"frontier/{k.removeprefix('eval/')}/{label}": v for k, v in metrics.items()}
        run.log({f"speedup/{result.speedup.basis}": result.speedup.reached, **named})
    columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
    data: list[Any] = [[row.get(key) for key in columns] for row in rows]
    run.log({"frontier_table": wandb.Table(columns=columns, data=data)})
    for name, show in (("frontier.png", wandb.Image), ("frontier.html", wandb.Html)):
        if (directory / name).exists():
            run.log({name.replace(".", "_"): show(str(directory / name))})
    if not run.offline:
        for result in (result for _, result in results):
            run.use_artifact(f"{result.name}:latest")  # W&B draws the lineage from these


def kept(result: Result) -> Any:
    """Return a table of what each block kept."""
    import wandb

    modules = dict.fromkeys(module for b in result.allocation for module in b.ranks)
    routed = ["experts"] * any(b.experts for b in result.allocation)
    columns: list[Any] = ["block", "query_heads", "kv_heads", "ffn", *routed, *modules]
    rows: list[Any] = [
        [getattr(b, name) for name in columns[: 4 + len(routed)]] + [*map(b.ranks.get, modules)]
        for b in result.allocation
    ]
    return wandb.Table(columns=columns, data=rows)


def summary(result: Result) -> dict[str, float]:
    """Return the numbers of a result by the names that W&B shows them under."""
    speedup, latency, params = result.speedup, result.latency, result.params
    numbers = {
        "speedup/target": speedup.target,
        "speedup/predicted": speedup.predicted,
        f"speedup/{speedup.basis}": speedup.reached,
        "latency/dense_ms": latency.dense.p50_ms,
        "latency/pruned_ms": latency.pruned.p50_ms,
        "params/total": params.pruned,
        "params/ratio": params.ratio,
        "memory/peak_host_gib": result.memory.peak_host_gib,
        "memory/peak_device_gib": result.memory.peak_device_gib,
    }
    numbers |= {f"eval/{key}": value for key, value in result.evaluation.pruned.items()}
    numbers |= {f"dense/eval/{key}": value for key, value in result.evaluation.dense.items()}
    numbers |= {f"one_shot/eval/{k}": v for k, v in result.evaluation.one_shot.items()}
    took, local = result.recovery, result.recovery.get("local", {})
    said = ("kind", "curve", "local")
    numbers |= {f"recovery/{key}": value for key, value in took.items() if key not in said}
    numbers |= {f"recovery/local/{k}": v for k, v in local.items() if k not in said}
    numbers |= {f"seconds/{stage}": value for stage, value in result.seconds.items()}
    return {key: value for key, value in numbers.items() if value is not None}
