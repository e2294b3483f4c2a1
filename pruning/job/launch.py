"""The Hydra shell of a job: what `launch.py`, and `pruning-launch` after pip install, run."""

import logging
import os
import shlex
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException as OmegaConfError

from pruning.composition import CONF, register, to_experiment
from pruning.experiment import run_name
from pruning.job.journal import Ended, journal, note, read
from pruning.results.result import finished
from pruning.system.device_locks import locked
from pruning.system.files import write_text
from pruning.system.writing import explained, of_files, writing

WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ
USER_ERRORS = (ValueError, HydraException, OmegaConfError)


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run one job, unless its result is there already; another process may be at it."""
    hydra_config = HydraConfig.get()
    out = Path(hydra_config.runtime.output_dir)
    command = shlex.join([*shell_name(), *hydra_config.overrides.task])
    try:
        with writing(out, "hydra.run.dir"), locked(out / ".lock"):
            job(config, out, command)
    except BaseException as error:
        with suppress(OSError):  # the disk may be what failed
            (out / "error.txt").write_text(traceback.format_exc())
        note(Ended(str(out), message(error)))
        raise  # the other jobs of a multirun go on
    (out / "error.txt").unlink(missing_ok=True)
    note(Ended(str(out)))


def job(config: DictConfig, out: Path, command: str) -> None:
    """Turn a config into files in `out`."""
    if finished(out):
        print(f"done before: {out / 'result.json'}")
        return
    experiment = to_experiment(config)
    start = None
    if (target := experiment.recovery.before(experiment.speedup)) is not None:
        start = earlier(config, target, out, command)
    if experiment.dry_run:
        from pruning.job.dry_run import rehearse

        rehearse(experiment, out.name)
        return
    write_text(OmegaConf.to_yaml(config, resolve=True), out / "config.yaml")
    from pruning.job.run import run
    from pruning.results import frontier

    run(experiment, out, command, start)
    print(f"\nAll results of study {experiment.study!r}: {frontier.write(out.parent)}")


def earlier(config: DictConfig, target: float, out: Path, command: str) -> Path:
    """Run the job of a lower target, which this one goes on from; return where it is."""
    config = config.copy()
    config.speedup = target
    start = out.parent / run_name(config)
    words = [word for word in shlex.split(command) if not word.startswith("speedup=")]
    with locked(start / ".lock"):
        job(config, start, shlex.join([*words, f"speedup={target:g}"]))
    return start


def message(error: BaseException) -> str:
    """Return what an error and its causes say, in one line; of config errors, where help is."""
    if isinstance(error, AssertionError) and str(error).startswith("Unexpected type"):
        return (  # OmegaConf's word for an override below a part that is null
            "an override names a field of a part that is null, as task.epochs=1 does without a "
            "task: choose that part too, such as task=sst2, or leave the override out"
        )
    if of_files(error):
        return explained(error)
    if not isinstance(error, USER_ERRORS):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    said: list[str] = []
    cause: BaseException | None = error
    while cause is not None and isinstance(cause, USER_ERRORS):
        text = " ".join(str(cause).split())
        if text and not any(text in other for other in said):
            said.append(text)
        cause = cause.__cause__ if not isinstance(cause, ValueError) else None
    if isinstance(error, (HydraException, OmegaConfError)):
        said.append("`python launch.py --help` lists groups, options and fields")
    return "; ".join(said)


def shell_name() -> list[str]:
    """Return the words that this program was started with."""
    name = Path(sys.argv[0]).name
    return ["python", name] if name.endswith(".py") else [name]


def shell() -> int:
    """Run `main`; say what failed in one line per job, with a traceback where it is our fault."""
    register()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints its own and exits
    logging.raiseExceptions = False  # a log that cannot be written is no reason for tracebacks
    failure: Exception | None = None
    with journal() as path:
        try:
            main()
        except Exception as error:
            if WANTS_TRACEBACK:
                raise
            failure = error
        jobs = read(path)
    studies = [Path(job.directory).parent for job in jobs]
    for study in dict.fromkeys(study for study in studies if studies.count(study) > 1):
        from pruning.results import frontier
        from pruning.results.tracker import publish

        if written := frontier.write(study, html=True):
            publish(study)
            print("", written.read_text(), sep="\n")
    failed = [job for job in jobs if job.failure]
    lines = [job.failure for job in failed]
    if len(jobs) > 1:
        lines = [f"{Path(job.directory).name}: {job.failure}" for job in failed]
    if failure is not None:
        lines = lines or [message(failure)]
        theirs = isinstance(failure, USER_ERRORS) or of_files(failure)
        if not theirs and "Unexpected type" not in str(failure):
            traceback.print_exception(failure)
    for line in lines:
        print("error:", line, file=sys.stderr)
    return 1 if lines else 0
