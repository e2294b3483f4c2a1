"""`dry_run=true`: which stages of a job are in the cache, and what the others cost, roughly.

The model and the calibration text are loaded, since the identity of every stage depends on them;
nothing else is computed but one forward pass of one batch, and calls of one block in the runtime:
the units of the estimates.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from pruning.calibration.moments import stored_bytes
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.job import stages
from pruning.job.memory import memory, of_blocks
from pruning.job.trim import trim
from pruning.latency.estimate import profile_seconds
from pruning.methods.method import Method, PruningContext
from pruning.models.loaded import LoadedModel
from pruning.models.stand_in import timed
from pruning.models.streamed import is_streamed
from pruning.system.cache import Cache, digest
from pruning.system.device_locks import computing_on
from pruning.system.job import Job
from pruning.system.stopwatch import Stopwatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.data.batch import Batch
    from pruning.latency.table import LatencyTable

DATA = ("model", "wheel", "documents")  # stages that only fetch and convert
GIB = 2**30


class NotCached(Exception):
    """A stage would have to be computed."""


class ReadOnlyCache(Cache):
    """A cache that builds nothing: a stage that is not there raises NotCached."""

    def stage(self, name: str, key: Any, build: Callable[[Path], None], size: int = 0) -> Path:
        """Return a finished stage."""
        if name not in DATA and not (self.root / name / digest(key)).is_dir():
            raise NotCached(name)
        return super().stage(name, key, build, size)


@dataclass
class Estimate:
    """Stages with what is known of them; one forward pass per token as the unit of most times."""

    seconds_per_token: float
    rows: list[tuple[str, str, float | None]] = field(default_factory=list)

    def add(self, stage: str, cached: bool, tokens: float | None) -> None:
        """Note a stage and how many tokens it brings through the whole model, if that is known.

        What is cached takes no time.
        """
        self.add_timed(stage, cached, tokens * self.seconds_per_token if tokens else None)

    def add_timed(self, stage: str, cached: bool, seconds: float | None) -> None:
        """Note a stage and how long it takes, if that is known."""
        state = "cached" if cached else "to compute"
        self.rows.append((stage, state, None if cached else seconds))

    def table(self, title: str) -> Table:
        """Return the stages as a table."""
        table = Table("stage", "state", title=title, title_justify="left")
        table.add_column("about, s", justify="right")
        for stage, state, seconds in self.rows:
            table.add_row(stage, state, "" if seconds is None else f"{seconds:.0f}")
        return table


def dry_run(experiment: Experiment, name: str) -> Estimate:
    """Print what a job would compute, and about how long that takes and how much memory."""
    experiment.model.check_path()
    device = experiment.hardware.open()
    with computing_on(device):
        return _dry_run(experiment, name, device)


def _dry_run(experiment: Experiment, name: str, device: torch.device) -> Estimate:
    job = Job(Path(name), device, ReadOnlyCache(experiment.cache), Stopwatch(), experiment.seed)
    estimate, console = Estimate(0.0), Console()
    suite, _ = experiment.suite.for_task(experiment.task).available(job.cache)
    dense, suite = trim(experiment, suite, stages.load(experiment, suite, job), job)
    text = stages.read_calibration(experiment, dense, job)
    try:
        dense = stages.fine_tune(experiment, dense, job)
    except NotCached:
        estimate.rows.append(("finetune", "to compute; what follows depends on it", None))
        console.print(estimate.table(name))
        return estimate
    estimate.seconds_per_token = _forward(dense.model, text.batches[0])
    table = _add_measured(estimate, experiment, suite, dense, job)
    reached = "profile"  # the stage that a job would have to compute first
    if table is not None:
        context = experiment.search, experiment.speedup, job
        reached = _reached(experiment.method, PruningContext(dense, text, table, *context))
    tokens = sum(batch.tokens for batch in text.batches)
    given = experiment.calibration, experiment.search
    cached = reached != "profile"
    for stage, cost in experiment.method.cost(dense.model, tokens, *given).items():
        cached = cached and stage not in (reached, "prune")
        estimate.add(stage, cached, cost)
    for stage, cost in experiment.recovery.cost(tokens).items():
        estimate.add(stage, False, cost)
    estimate.add("measure", False, None)
    estimate.add("evaluate the pruned model", False, _read(suite))
    console.print(estimate.table(name))
    prunable, hidden = experiment.method.sites(dense.model), dense.model.config.hidden_size
    stored = stored_bytes(prunable, hidden, experiment.calibration.stored)
    total = sum(seconds or 0.0 for _, _, seconds in estimate.rows)
    took = f"{memory(dense.model, tokens) / GIB:.1f} GiB of memory at the peak"
    if is_streamed(dense.model):
        took = f"{of_blocks(experiment, dense.model) / GIB:.1f} GiB more, one block at a time"
    console.print(
        f"about {total / 60:.0f} minutes, solves, measure and lm-eval's tasks not counted; about "
        f"{took}, and {stored / GIB:.1f} GiB of disk for its moments"
    )
    return estimate


def _add_measured(
    estimate: Estimate, experiment: Experiment, suite: Suite, loaded: LoadedModel, job: Job
) -> "LatencyTable | None":
    """Add what is measured of the dense model; return the latency table if it is there."""
    table, sites = None, experiment.method.sites(loaded.model)
    with suppress(NotCached):
        table = experiment.hardware.profile(loaded.model, sites, job.cache, experiment.runtime)
    how, seconds = experiment.hardware.measurement(loaded.model, experiment.runtime), None
    if table is None and how is not None:
        seconds = profile_seconds(timed(loaded.model), how, sites)
    estimate.add_timed("profile", table is not None, seconds)
    text_alone = replace(suite, tasks={}, labelled={}, questions={})
    known = (_is_known(part, loaded.reference, job.cache) for part in (suite, text_alone))
    whole, text = known
    estimate.add("evaluate the dense model", whole, None if text else _read(suite))
    return table


def _reached(method: Method, context: PruningContext) -> str:
    """Go the way of `run` as far as finished stages lead; return the first that is not."""
    try:
        method.plan(context)
    except NotCached as absent:
        return str(absent)
    return "prune"


def _is_known(suite: Suite, loaded: LoadedModel, cache: Cache) -> bool:
    """Say whether all parts of a suite are measured; one of no parts is."""
    try:
        suite.evaluate(loaded.model, loaded.tokenizer, cache, loaded.fingerprint)
    except NotCached:
        return False
    return True


def _read(suite: Suite) -> float | None:
    """Return how many tokens the perplexity of a suite reads, if that is told."""
    part = suite.perplexity
    return None if part is None or part.tokens is None else float(part.tokens * len(part.window))


@torch.no_grad()
def _forward(model: "PreTrainedModel", batch: "Batch") -> float:
    """Return the seconds per token of one forward pass."""
    start = time.perf_counter()
    model(**batch.inputs(model.device))
    return (time.perf_counter() - start) / batch.tokens
