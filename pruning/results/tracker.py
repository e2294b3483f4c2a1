"""Weights & Biases as a view of results: it reads a finished one and can never cost it."""

import logging
import netrc
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import MISSING

from pruning.results.result import Result

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


@dataclass
class Tracker:
    """One W&B run per job, grouped by study."""

    name: Service = MISSING
    project: str = MISSING
    entity: str | None = MISSING  # team or user; null: the key's default
    mode: Mode = MISSING
    timeout: float = MISSING  # seconds that starting a run, and finishing its upload, may take

    def __post_init__(self) -> None:
        if isinstance(self.timeout, float) and self.timeout <= 0:
            raise ValueError(f"tracker.timeout={self.timeout} must be more than 0 seconds")

    def report(self, result: Result, directory: Path) -> None:
        """Show a result that is already written to `directory`; a failure is a logged warning."""
        if self.name is Service.none:
            return
        try:
            self._report(result, directory)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            log.warning(
                "W&B did not take run %s (%s: %s); its result is safe in %s",
                *(result.name, type(error).__name__, reason, directory / "result.json"),
            )

    def _report(self, result: Result, directory: Path) -> None:
        import wandb

        settings = wandb.Settings(
            silent=True, init_timeout=self.timeout, finish_timeout=self.timeout
        )
        with wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self._choose_mode(),  # type: ignore[arg-type]
            group=result.study,
            name=result.name,
            id=run_id(result.name),
            config=result.config,
            dir=directory,
            settings=settings,
        ) as run:
            modules = dict.fromkeys(module for b in result.allocation for module in b.ranks)
            columns: list[Any] = ["block", "query_heads", "kv_heads", "ffn", *modules]
            rows: list[Any] = [
                [b.block, b.query_heads, b.kv_heads, b.ffn, *(b.ranks.get(m) for m in modules)]
                for b in result.allocation
            ]
            run.define_metric("training/*", step_metric="training/step")
            for entry in result.training:
                run.log({f"training/{key}": value for key, value in entry.items()})
            run.log({"per_layer/kept": wandb.Table(columns=columns, data=rows)})
            run.summary.update(summary(result))

    def _choose_mode(self) -> str:
        if self.mode is not Mode.auto:
            return self.mode.value
        if told := os.environ.get("WANDB_MODE"):
            return told
        if has_key():
            return "online"
        log.info(
            "no W&B API key: the run stays offline; `wandb login`, then `wandb sync` uploads it"
        )
        return "offline"


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
    numbers |= {f"seconds/{stage}": value for stage, value in result.seconds.items()}
    return {key: value for key, value in numbers.items() if value is not None}


def run_id(name: str) -> str:
    """Turn a run name into an id that W&B accepts; the hash at its end survives."""
    return re.sub(r"[^\w.-]", "-", name)[-64:]


def has_key() -> bool:
    """Say whether W&B would find credentials: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(urlsplit(base).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False
