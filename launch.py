"""Prune a language model to a speedup: `python launch.py model=... speedup=1.5`."""

import shlex
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pruning.experiment import register
from pruning.job.command import run_command, run_job


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    """Run one job, unless its result is there already; another process may be at it."""
    hydra_config = HydraConfig.get()
    command = shlex.join(["python", "launch.py", *hydra_config.overrides.task])
    run_job(config, Path(hydra_config.runtime.output_dir), command)


if __name__ == "__main__":
    register()
    sys.exit(run_command(main))
