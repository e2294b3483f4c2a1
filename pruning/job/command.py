"""A command and its jobs: each runs once, tells how it ended, and its study gets a report."""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pruning.experiment import run_name, to_experiment
from pruning.job.failure import in_one_line, is_for_users
from pruning.job.journal import Ended, journal, note, read
from pruning.results.result import finished
from pruning.system.device_locks import locked
from pruning.system.files import write_text
from pruning.system.writing import writing

WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ


def run_job(config: DictConfig, out: Path, command: str) -> None:
    """Run one job in `out`, unless it is done there; tell the command how it ended."""
    try:
        with writing(out, "hydra.run.dir"), locked(out / ".lock"):
            run_unless_done(config, out, command)
    except BaseException as error:
        with suppress(OSError):  # the disk may be what failed
            (out / "error.txt").write_text(traceback.format_exc())
        note(Ended(str(out), in_one_line(error)))
        raise  # the other jobs of a multirun go on
    (out / "error.txt").unlink(missing_ok=True)
    note(Ended(str(out)))


def run_unless_done(config: DictConfig, out: Path, command: str) -> None:
    """Turn a config into files in `out`."""
    if finished(out):
        print(f"done before: {out / 'result.json'}")
        return
    experiment = to_experiment(config)
    start = None
    if (target := experiment.recovery.before(experiment.speedup)) is not None:
        start = run_prerequisite(config, target, out, command)
    if experiment.dry_run:
        from pruning.job.dry_run import rehearse

        rehearse(experiment, out.name)
        return
    write_text(OmegaConf.to_yaml(config, resolve=True), out / "config.yaml")
    from pruning.job.run import run
    from pruning.results import frontier

    run(experiment, out, command, start)
    print(f"\nAll results of study {experiment.study!r}: {frontier.write(out.parent)}")


def run_prerequisite(config: DictConfig, target: float, out: Path, command: str) -> Path:
    """Run the job of a lower target, which this one goes on from; return where it is."""
    config = config.copy()
    config.speedup = target
    start = out.parent / run_name(config)
    words = [word for word in shlex.split(command) if not word.startswith("speedup=")]
    with locked(start / ".lock"):
        run_unless_done(config, start, shlex.join([*words, f"speedup={target:g}"]))
    return start


def run_command(main: Callable[[], None]) -> int:
    """Run all jobs by Hydra's `main`; report studies, say what failed; return the exit code.

    What failed is said in one line per job, with a traceback where it is our fault.
    """
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
    report_studies(jobs)
    lines = failures(jobs)
    if failure is not None:
        lines = lines or [in_one_line(failure)]
        if not is_for_users(failure):
            traceback.print_exception(failure)
    for line in lines:
        print("error:", line, file=sys.stderr)
    return 1 if lines else 0


def report_studies(jobs: list[Ended]) -> None:
    """Print and publish the report of every study that had several of these jobs."""
    studies = [Path(job.directory).parent for job in jobs]
    for study in dict.fromkeys(study for study in studies if studies.count(study) > 1):
        from pruning.results import frontier
        from pruning.results.tracker import publish

        if written := frontier.write(study, html=True):
            publish(study)
            print("", written.read_text(), sep="\n")


def failures(jobs: list[Ended]) -> list[str]:
    """Return a line for every job that failed, with its name where there are several."""
    failed = [job for job in jobs if job.failure]
    if len(jobs) > 1:
        return [f"{Path(job.directory).name}: {job.failure}" for job in failed]
    return [job.failure for job in failed]
