"""The table at the end of a job: dense and pruned, side by side."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pruning.results.result import Numbers, Result, times


def table(result: Result) -> Table:
    """Return the numbers of a result, a column each for the dense and the pruned model."""
    speedup, params = result.speedup, result.params
    table = Table(title=result.name, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("pruned", justify="right")
    pruned = f"{params.pruned / 1e6:.1f} M ({params.ratio:.1%})"
    table.add_row("parameters", f"{params.dense / 1e6:.1f} M", pruned)
    for row in latency_rows(result):
        table.add_row(*row)
    table.add_row("speedup target", "", times(speedup.target))
    if speedup.measured is not None:
        table.add_row("speedup predicted", "", times(speedup.predicted))
    doubt = "" if speedup.stderr is None else f" ± {speedup.stderr:.3f}"
    reached = f"[bold]{times(speedup.reached)}[/bold]{doubt}"
    table.add_row(f"speedup {speedup.basis}", "", reached)
    for row in evaluation_rows(result):
        table.add_row(*row)
    for row in recovery_rows(result):
        table.add_row(*row)
    for part in result.evaluation.not_run:
        table.add_row(part, "not run", "not run")
    for part, share in result.evaluation.shared.items():
        table.add_row(f"calibration rows also in the suite's {part}", "", f"{share:.1%}")
    device = result.memory.peak_device_gib
    table.add_row("peak memory of the job, host", "", f"{result.memory.peak_host_gib:.2f} GiB")
    if device is not None:
        table.add_row("peak memory of the job, device", "", f"{device:.2f} GiB")
    table.add_row("time of the job", "", f"{result.seconds['total']:.0f} s")
    return table


def latency_rows(result: Result) -> list[tuple[str, str, str]]:
    """Return (what, dense, pruned) as texts: percentiles where something was timed."""
    latency, basis = result.latency, result.speedup.basis
    dense, pruned, setting = latency.dense, latency.pruned, latency.text()
    if basis != "measured":
        what = f"latency {basis}" if latency.unit == "ms" else "counted"
        before, after = (f"{side.p50_ms:.4g} {latency.unit}" for side in (dense, pruned))
        return [(f"{what} ({setting})", before, after)]
    return [
        (f"latency p50 ({setting})", f"{dense.p50_ms:.1f} ms", f"{pruned.p50_ms:.1f} ms"),
        (f"latency p90 ({setting})", f"{dense.p90_ms:.1f} ms", f"{pruned.p90_ms:.1f} ms"),
    ]


def source(result: Result) -> str:
    """Say where a speed that was not measured comes from; nothing where it was."""
    environment, setting = result.table.get("environment", {}), result.table.get("setting", {})
    said: list[str] = []
    if where := environment.get("gpu") or environment.get("cpu"):
        threads = "" if environment.get("gpu") else f", {environment.get('threads')} threads"
        version = environment.get("packages", {}).get("torch", "unknown")
        said.append(f"The table was measured on {where}{threads}, with torch {version}.")
    if "between" in setting:
        error = setting.get("interpolation")
        off = "unknown" if error is None else f"up to {error:.1%}"
        said.append("Between batches {} and {}: error {}.".format(*setting["between"], off))
    return " ".join(said)


def evaluation_rows(result: Result) -> list[tuple[str, str, str]]:
    """Return (metric, dense, pruned) as texts, standard errors behind the values they belong to.

    What a metric was before recovery has a line of its own.
    """
    measured = result.evaluation
    dense, pruned, one_shot = measured.dense, measured.pruned, measured.one_shot
    rows: list[tuple[str, str, str]] = []

    def add(title: str, key: str, dense: Numbers, pruned: Numbers) -> None:
        rows.append((title, quantity(dense, key), quantity(pruned, key)))

    for key in filter(is_metric, dict.fromkeys([*dense, *pruned])):
        add(titled(dense, key), key, dense, pruned)
        if key in one_shot:
            add(f"{key}, before recovery", key, {}, one_shot)
        if key in (served := measured.served).get("pruned", {}):
            add(f"{key}, {result.latency.runtime}", key, served["dense"], served["pruned"])
    return rows


def windows(result: Result) -> str:
    """Say what text was read token by token; nothing where there was none."""
    begun = {
        "every": "each after a beginning-of-sequence token",
        "first": "the first after a beginning-of-sequence token",
        "none": "without a beginning-of-sequence token",
    }
    return " ".join(
        f"{metric}: {counts['predicted']:,} tokens "
        + (f"({counts['bytes']:,} bytes) " if "bytes" in counts else "")
        + f"predicted in {counts['windows']:,} windows, {begun[counts['bos']]}."
        for metric, counts in result.evaluation.windows.items()
    )


def recovery_rows(result: Result) -> list[tuple[str, str, str]]:
    """Return what recovery took, as texts; nothing where there was none."""
    took = result.recovery
    if not took:
        return []
    rows = {
        f"recovery={took['kind']}": f"{took['seconds']:.0f} s",
        "recovery, steps": f"{took['steps']:,}",
        "recovery, tokens": f"{took['tokens']:,}",
        "recovery, tokens per second": f"{took['tokens_per_s']:.0f}",
        "recovery, peak memory, host": f"{took['peak_host_gib']:.2f} GiB",
    }
    if took["peak_device_gib"] is not None:
        rows["recovery, peak memory, device"] = f"{took['peak_device_gib']:.2f} GiB"
    if "local" in took:
        rows["local reconstruction before it"] = f"{took['local']['seconds']:.0f} s"
    return [(what, "", value) for what, value in rows.items()]


def is_metric(key: str) -> bool:
    """Tell metrics from what belongs to one: its standard error, its chance."""
    return not key.endswith(("_stderr", "_chance"))


def titled(values: Numbers, key: str) -> str:
    """Return a metric's name, with what guessing would give if that is known."""
    chance = values.get(f"{key}_chance")
    return key if chance is None else f"{key} (chance {chance:.3f})"


def rounded(error: float) -> str:
    """Write an error with two digits that count, and all in front of the point."""
    return f"{error:.0f}" if 100 <= error < 1e5 else f"{error:.2g}"


def quantity(values: Numbers, key: str) -> str:
    """Write a number with its standard error, if it has one."""
    if key not in values:
        return ""
    value, error = values[key], values.get(f"{key}_stderr")
    if value is None:
        return "not finite"
    if "perplexity" in key:
        text = f"{value:.2f}" if value < 1e5 else f"{value:.2e}"
        return text if error is None else f"{text} ± {rounded(error)}"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def loading(path: str, remote_code: bool, loader: str) -> str:
    """Return the three lines of Python that load a checkpoint; `loader` is the Auto class."""
    trust = ", trust_remote_code=True" if remote_code else ""
    return (
        f"from transformers import {loader}, AutoTokenizer\n"
        f"model = {loader}.from_pretrained({json.dumps(path)}{trust})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(path)})"
    )


def show(result: Result, directory: Path, console: Console | None = None) -> None:
    """Print the table, where the checkpoint is, and how it is loaded."""
    console = console or Console()
    checkpoint = directory / "model"
    config = json.loads((checkpoint / "config.json").read_text())
    console.print(table(result))
    for said in filter(None, (windows(result), source(result))):
        console.print(f"\n{said}", highlight=False, soft_wrap=True)
    console.print(f"\nThe checkpoint is in {checkpoint}\n", highlight=False, soft_wrap=True)
    lines = loading(str(checkpoint), "auto_map" in config, result.loader)
    console.print(lines, markup=False, highlight=False, soft_wrap=True)
