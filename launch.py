"""Prune a language model to a speedup: `python launch.py model=... speedup=1.5`."""

import os
import shlex
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException as OmegaConfError

from pruning.experiment import register, to_experiment
from pruning.results.result import finished

WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ
failures: list[str] = []  # what users did wrong, a line per job
studies: list[Path] = []  # where the results are, an entry per job


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run one job, unless its result is there already."""
    hydra_config = HydraConfig.get()
    out = Path(hydra_config.runtime.output_dir)
    if finished(out):
        print(f"done before: {out / 'result.json'}")
        studies.append(out.parent)
        return
    command = shlex.join(["python", "launch.py", *hydra_config.overrides.task])
    try:
        experiment = to_experiment(config)
        (out / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        from pruning import report
        from pruning.run import run

        run(experiment, out, command)
        print(f"\nAll results of study {experiment.study!r}: {report.write(out.parent)}")
        studies.append(out.parent)
    except BaseException as error:
        (out / "error.txt").write_text(traceback.format_exc())
        if WANTS_TRACEBACK or not isinstance(error, ValueError):
            raise
        failures.append(message(error))  # the other jobs of a multirun go on
    else:
        (out / "error.txt").unlink(missing_ok=True)


def message(error: BaseException) -> str:
    """Return what an error and its causes say, in one line; of config errors, where help is."""
    said: list[str] = []
    cause: BaseException | None = error
    while cause is not None and isinstance(cause, (ValueError, HydraException, OmegaConfError)):
        text = " ".join(str(cause).split())
        if text and not any(text in other for other in said):
            said.append(text)
        cause = cause.__cause__ if not isinstance(cause, ValueError) else None
    if isinstance(error, (HydraException, OmegaConfError)):
        said.append("`python launch.py --help` lists groups, options and fields")
    return "; ".join(said)


def shell() -> int:
    """Run `main`; say what a user did wrong in one line instead of a traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints its own and exits
    try:
        main()
    except (HydraException, OmegaConfError) as error:
        if WANTS_TRACEBACK:
            raise
        failures.append(message(error))
    except AssertionError as error:  # OmegaConf's word for an override below a part that is null
        if WANTS_TRACEBACK or not str(error).startswith("Unexpected type"):
            raise
        failures.append(
            "an override names a field of a part that is null, as task.epochs=1 does without a "
            "task: choose that part too, such as task=sst2, or leave the override out"
        )
    for study in {study for study in studies if studies.count(study) > 1}:
        from pruning import report

        written = report.write(study, html=True)
        print("", written.read_text() if written else "", sep="\n")
    for failure in failures:
        print("error:", failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    register()
    sys.exit(shell())
