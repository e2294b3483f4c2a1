"""The Hydra shell of a job: what `launch.py`, and `pruning-launch` after pip install, run."""

import logging
import os
import shlex
import sys
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pruning.composition import CONF, refuse_renamed, register, to_experiment
from pruning.experiment import Experiment
from pruning.job.failure import in_one_line, is_for_users
from pruning.job.job import job
from pruning.job.journal import JobOutcome, journal, read, record
from pruning.results.result import Result
from pruning.system.device_locks import locked
from pruning.system.streams import steady_streams
from pruning.system.writing import writing

UNKNOWN_FLAG = 2  # exit code of argparse
INTERRUPTED = 130  # exit code, as a shell has it for Ctrl-C
WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run one job, unless its result is there already; another process may be at it."""
    hydra_config = HydraConfig.get()
    out = Path(hydra_config.runtime.output_dir)
    try:
        with steady_streams(), writing(out, "hydra.run.dir"), locked(out / ".lock"):
            experiment = to_experiment(config)
            words = {"overrides": list(hydra_config.overrides.task), "asked": experiment.speedup}
            job(experiment, out, partial(command, **words), show)
    except BaseException as error:
        with suppress(OSError):  # the disk may be what failed
            (out / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        told = record(JobOutcome(str(out), in_one_line(error)))
        alone = hydra_config.mode is RunMode.RUN and is_for_users(error)
        if told and alone and not WANTS_TRACEBACK:
            return  # without the line that Hydra puts in front of what is raised
        raise  # the other jobs of a multirun go on
    (out / "error.txt").unlink(missing_ok=True)
    record(JobOutcome(str(out)))


def show(experiment: Experiment, result: Result, out: Path) -> None:
    """Give a result to the tracker, print it, and write the report of its study."""
    from pruning.results import frontier, report

    experiment.tracker.report(result, out)
    report.show(result, out)
    print(f"\nAll results of study {experiment.study!r}: {frontier.write(out.parent)}")


def command(experiment: Experiment, overrides: list[str], asked: float | None) -> str:
    """Return the command line of a job, or of one of a lower target that it goes on from."""
    if experiment.speedup != asked:
        overrides = [word for word in overrides if not word.startswith("speedup=")]
        overrides.append(f"speedup={experiment.speedup:g}")
    script = Path(sys.argv[0])
    if script.suffix != ".py":
        return shlex.join([script.name, *overrides])
    if script.is_absolute():  # of another directory's the name: no result says whose home it is
        here = script.is_relative_to(Path.cwd())
        script = script.relative_to(Path.cwd()) if here else Path(script.name)
    return shlex.join(["python", str(script), *overrides])


def shell() -> int:
    """Run `main`; say what failed in one line per job, with a traceback where it is our fault."""
    register()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints its own and exits
    calm_bars()
    logging.raiseExceptions = False  # a log that cannot be written is no reason for tracebacks
    with steady_streams() as fault_of_streams:
        code: int | str | None = 0
        try:
            lines = launch()
        except SystemExit as end:  # of --help, and of flags that there are not
            lines, code = [], end.code
            if code == UNKNOWN_FLAG:
                flags = " ".join(word for word in sys.argv[1:] if word.startswith("-"))
                lines.append(f"{flags}: give options as FIELD=VALUE, without dashes")
        except KeyboardInterrupt:
            print("error: interrupted: the same command goes on from there", file=sys.stderr)
            return INTERRUPTED
        if said := fault_of_streams():
            lines.append(said)
        for line in lines:
            print("error:", line, file=sys.stderr)
    return 1 if lines else int(code or 0)


def calm_bars() -> None:
    """Let bars of other libraries write every half a minute where no terminal moves them."""
    if not sys.stderr.isatty():
        for name, seconds in (("TQDM_MININTERVAL", "30"), ("TQDM_MAXINTERVAL", "60")):
            os.environ.setdefault(name, seconds)
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' too


def launch() -> list[str]:
    """Run the jobs of the command line and report their studies; return a line per failure."""
    failure: Exception | None = None
    jobs: list[JobOutcome] = []
    try:
        with journal() as path:
            try:
                refuse_renamed(sys.argv[1:])
                main()
            finally:
                jobs = read(path)
        report_studies(jobs)
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        failure = error
    lines = failures(jobs)
    if failure is not None:
        lines = lines or [in_one_line(failure)]
        if not is_for_users(failure):
            traceback.print_exception(failure)
    return lines


def report_studies(jobs: list[JobOutcome]) -> None:
    """Print and publish the report of every study that had several of these jobs."""
    studies = [Path(job.directory).parent for job in jobs]
    for study in dict.fromkeys(study for study in studies if studies.count(study) > 1):
        from pruning.results import frontier
        from pruning.results.tracker import publish

        if written := frontier.write(study, html=True):
            publish(study)
            print("", written.read_text(encoding="utf-8"), sep="\n")
            print(f"The page: {written.with_suffix('.html')}")


def failures(jobs: list[JobOutcome]) -> list[str]:
    """Return a line for every job that failed, with its name where there are several."""
    failed = [job for job in jobs if job.failure]
    if len(jobs) > 1:
        return [f"{Path(job.directory).name}: {job.failure}" for job in failed]
    return [job.failure for job in failed]
