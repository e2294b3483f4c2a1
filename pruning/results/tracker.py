"""Weights & Biases as a view of results: it reads finished ones and can never cost them."""

import logging
import netrc
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pruning.results.result import Result
from pruning.system.options import Options

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)


class Service(StrEnum):
    """Where results are shown."""

    wandb = "wandb"
    none = "none"


class Mode(StrEnum):
    """Whether a run is uploaded."""

    auto = "auto"  # online where W&B has a key, else offline; WANDB_MODE decides where it is set
    online = "online"
    offline = "offline"
    disabled = "disabled"  # nothing is shown, as with tracker=none


@dataclass
class Tracker(Options):
    """One W&B run per job, grouped by study, and one for the study."""

    where = "tracker"
    name: Service = Service.wandb  # where results are shown
    project: str = "pruning"  # created at the first upload
    entity: str | None = None  # team or user; null: the key's default
    mode: Mode = Mode.auto  # online where there is an API key, else offline
    timeout: float = 60.0  # seconds that starting a run, and finishing its upload, may take
    checkpoint: bool = False  # whether the pruned model goes along as an artifact

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("timeout", above=0)

    @property
    def shows(self) -> bool:
        """Say whether results are shown at all."""
        return self.name is not Service.none and self.mode is not Mode.disabled

    def report(self, result: Result, directory: Path) -> bool:
        """Show a result that is already written to `directory`; say whether W&B took it."""
        if not self.shows:
            return False
        from pruning.results.runs import log_job

        def show(run: "Run") -> None:
            log_job(run, result, directory, self.checkpoint)

        identity = {"name": result.name, "id": run_id(result.name), "config": result.config}
        return self._run(show, directory, result.study, job_type="prune", **identity)

    def report_study(self, directory: Path) -> bool:
        """Show the frontier of a study's results, as one run; say whether W&B took it."""
        if not self.shows:
            return False
        from pruning.results.points import gather, read_results
        from pruning.results.runs import log_study

        points = gather(read_results(directory))
        name = f"{directory.name}-frontier"

        def show(run: "Run") -> None:
            log_study(run, points, directory)

        return self._run(
            show, directory, directory.name, job_type="frontier", name=name, id=run_id(name)
        )

    def _run(
        self, show: "Callable[[Run], None]", directory: Path, group: str, **identity: Any
    ) -> bool:
        """Open a run, or the one of that id again, and show something; a failure is a warning."""
        try:
            import wandb

            settings = wandb.Settings(
                silent=True, init_timeout=self.timeout, finish_timeout=self.timeout
            )
            mode: Any = self._choose_mode()
            with wandb.init(
                project=self.project,
                entity=self.entity,
                mode=mode,
                group=group,
                dir=directory,
                resume=None if mode == "offline" else "allow",
                settings=settings,
                **identity,
            ) as run:
                show(run)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            log.warning(
                "W&B did not take run %s (%s: %s); its result is safe in %s",
                *(identity["name"], type(error).__name__, reason, directory),
            )
            return False
        return True

    def _choose_mode(self) -> str:
        if self.mode is not Mode.auto:
            return self.mode.value
        if told := os.environ.get("WANDB_MODE"):
            return told
        if has_key():
            return "online"
        log.info(
            "no W&B API key: the W&B run stays offline, in wandb/ of the job; `python -m pruning "
            "sync` uploads it later, and tracker=none leaves it out"
        )
        return "offline"


def publish(study: Path) -> None:
    """Show the frontier of a study by the tracker that its first result was made with."""
    from pruning.results.points import read_results

    given: dict[str, Any] = {"checkpoint": False, **read_results(study)[0].config["tracker"]}
    given |= {"name": Service(given["name"]), "mode": Mode(given["mode"])}
    Tracker(**given).report_study(study)


def run_id(name: str) -> str:
    """Turn a run name into an id that W&B accepts; the hash at its end survives."""
    return re.sub(r"[^\w.-]", "-", name)[-64:]


def refuse_without_key() -> None:
    """Raise ValueError where W&B would find no credentials."""
    if not has_key():
        raise ValueError("W&B has no API key here: run `wandb login`, or set WANDB_API_KEY")


def has_key() -> bool:
    """Say whether W&B would find credentials: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return netrc.netrc(path).authenticators(urlsplit(base).netloc) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):  # without a home too
        return False
