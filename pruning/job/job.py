"""A job from its experiment: skipped where its result is there, gone on with where it was killed.

`launch.py` and `pruning.prune` both come here.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from pruning.experiment import Experiment, run_name
from pruning.results.result import Result, finished, read
from pruning.system.device_locks import locked
from pruning.system.files import clear_scratch, write_text

Command = Callable[[Experiment], str]
Show = Callable[[Experiment, Result, Path], None]


def job(
    experiment: Experiment, out: Path, command: Command, show: Show | None = None
) -> Result | None:
    """Turn an experiment into files in `out`, unless they are there; None for a dry run.

    `command` says how an experiment is asked for; `show` is called with every new result.
    """
    if finished(out):
        print(f"done before: {out / 'result.json'}")
        return read(out / "result.json")
    start = None
    if (target := experiment.recovery.before(experiment.speedup)) is not None:
        start = prerequisite(replace(experiment, speedup=target), out, command, show)
    if experiment.dry_run:
        from pruning.job.dry_run import dry_run

        dry_run(experiment, out.name)
        return None
    clear_scratch(out)
    config = OmegaConf.structured(experiment)
    write_text(OmegaConf.to_yaml(config, resolve=True), out / "config.yaml")
    from pruning.job.run import run

    result = run(experiment, out, command(experiment), start)
    if show is not None:
        show(experiment, result, out)
    return result


def prerequisite(experiment: Experiment, beside: Path, command: Command, show: Show | None) -> Path:
    """Do the job of a lower target, which another one goes on from; return where it is."""
    out = beside.parent / run_name(OmegaConf.structured(experiment))
    with locked(out / ".lock"):
        job(experiment, out, command, show)
    return out
