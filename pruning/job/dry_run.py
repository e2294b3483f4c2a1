"""`dry_run=true`: which stages of a job are in the cache, and what the others cost, roughly.

The model and the calibration text are loaded, since the identity of every stage depends on them;
nothing else is computed but one forward pass of one batch, the unit of the estimates.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.job.preflight import check_ids, preflight
from pruning.methods.method import Subject
from pruning.models.sites import blocks, sites
from pruning.models.source import fingerprint
from pruning.recovery.recovery import Training
from pruning.system.cache import Cache, digest
from pruning.system.device_locks import sharing
from pruning.system.stopwatch import Stopwatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.data.batch import Batch
    from pruning.evaluation.suite import Suite

DATA = ("model", "wheel", "documents")  # stages that only fetch and convert
GIB = 2**30


class Absent(Exception):
    """A stage would have to be computed."""


class Rehearsal(Cache):
    """A cache that builds nothing: a stage that is not there raises Absent."""

    def stage(self, name: str, key: Any, build: Callable[[Path], None]) -> Path:
        """Return a finished stage."""
        if name not in DATA and not (self.root / name / digest(key)).is_dir():
            raise Absent(name)
        return super().stage(name, key, build)


class _Until(Stopwatch):
    """Lets a plan begin, and stops it in front of what is computed for every target anew."""

    def __call__(self, stage: str):
        if stage in ("search", "train", "recover"):
            raise Absent(stage)
        return super().__call__(stage)


@dataclass
class Estimate:
    """Stages with what is known of them; one forward pass per token as the unit of time."""

    seconds_per_token: float
    rows: list[tuple[str, str, float | None]] = field(default_factory=list)

    def add(self, stage: str, cached: bool, tokens: float | None) -> None:
        """Note a stage and how many tokens it brings through the whole model, if that is known.

        What is cached takes no time.
        """
        seconds = tokens * self.seconds_per_token if tokens and not cached else None
        self.rows.append((stage, "cached" if cached else "to compute", seconds))

    def table(self, title: str) -> Table:
        """Return the stages as a table."""
        found = Table("stage", "state", title=title, title_justify="left")
        found.add_column("about, s", justify="right")
        for stage, state, seconds in self.rows:
            found.add_row(stage, state, "" if seconds is None else f"{seconds:.0f}")
        return found


def rehearse(experiment: Experiment, name: str) -> Estimate:
    """Print what a job would compute, and about how long that takes and how much memory."""
    device = experiment.hardware.open()
    with sharing(device):
        return _rehearse(experiment, name, device)


def _rehearse(experiment: Experiment, name: str, device: torch.device) -> Estimate:
    cache, console = Rehearsal(experiment.cache), Console()
    dense, tokenizer = experiment.model.load(cache, device, experiment.task)
    suite, _ = experiment.suite.of(experiment.task).available(cache)
    preflight(experiment, suite, dense, tokenizer, cache)
    seed = experiment.seed
    source = {"tokenizer": tokenizer, "cache": cache, "seed": seed, "task": experiment.task}
    batches = experiment.calibration.batches(**source)
    check_ids((batch.ids for batch in batches), dense, tokenizer, "calibration")
    found = Estimate(0.0)
    if experiment.task is not None:
        try:
            dense = experiment.task.teach(dense, tokenizer, cache)
        except Absent:
            found.rows.append(("finetune", "to compute; what follows depends on it", None))
            console.print(found.table(name))
            return found
    text = partial(experiment.calibration.up_to, **source)
    found.seconds_per_token = _forward(dense, batches[0])
    _rows(found, experiment, suite, dense, tokenizer, batches, text, cache)
    console.print(found.table(name))
    total = sum(seconds or 0.0 for _, _, seconds in found.rows)
    console.print(
        f"about {total / 60:.0f} minutes, solves, profile and lm-eval's tasks not counted; about "
        f"{_memory(dense, batches) / GIB:.1f} GiB of memory at the peak"
    )
    return found


def _rows(
    found: Estimate,
    experiment: Experiment,
    suite: Suite,
    dense: "PreTrainedModel",
    tokenizer: Any,
    batches: "list[Batch]",
    text: "Callable[[int], list[Batch]]",
    cache: Rehearsal,
) -> None:
    """Go the way of `run`, as far as finished stages lead."""
    identity, tokens = fingerprint(dense), sum(batch.tokens for batch in batches)
    read = None if suite.perplexity is None else _read(suite.perplexity)
    table = None
    with suppress(Absent):
        of = experiment.method.sites(dense)
        table = experiment.hardware.profile(dense, of, cache, experiment.runtime)
    found.add("profile", table is not None, None)
    text_alone = replace(suite, tasks={}, labelled={}, questions={})
    whole, of_text = (_known(of, dense, tokenizer, cache, identity) for of in (suite, text_alone))
    found.add("evaluate the dense model", whole, None if of_text else read)
    reached = "moments"  # what a method asks for first, if it asks for anything
    if table is not None:
        subject = Subject(
            *(dense, identity, batches, text, experiment.calibration, table, experiment.search),
            *(experiment.speedup, experiment.seed, cache, _Until()),
        )
        try:
            experiment.method.plan(subject)
            reached = "prune"
        except Absent as absent:
            reached = str(absent)
    for stage, cost in _costs(experiment, dense, tokens).items():
        found.add(stage, STAGES.index(stage) < STAGES.index(reached), cost)
    found.add("measure", False, None)
    found.add("evaluate the pruned model", False, read)


STAGES = ["influence", "moments", "levels", "search", "train", "prune", "recover"]


def _costs(
    experiment: Experiment, dense: "PreTrainedModel", tokens: int
) -> dict[str, float | None]:
    """Return how many tokens each stage of a method brings through the whole model."""
    search, found = experiment.search, {}
    if hasattr(search, "tokens"):  # it measures candidates
        of, depth = experiment.method.sites(dense), len(blocks(dense))
        anchors = len(getattr(search, "anchors", []))
        behind = sum(1 - site.block / depth for site in of)
        candidates = search.steps + getattr(search, "inits", 1)  # type: ignore[attr-defined]
        found = {"moments": tokens, "levels": 0.0}
        found["search"] = (anchors * behind + candidates) * search.tokens  # type: ignore[attr-defined]
    if hasattr(experiment.method, "steps"):  # a backward pass costs two
        m: Any = experiment.method
        found["train"] = 3.0 * m.steps * m.batch * experiment.calibration.sequence
    sequential = experiment.method.name == "slimgpt" or experiment.calibration.target == "dense"
    found["prune"] = 2.0 * tokens if sequential else 0.0
    if isinstance(experiment.recovery, Training):
        found["recover"] = _training(experiment.recovery)
    return found


def _known(
    suite: "Suite", dense: "PreTrainedModel", tokenizer: Any, cache: Rehearsal, identity: str
) -> bool:
    """Say whether all parts of a suite are measured; one of no parts is."""
    try:
        suite.evaluate(dense, tokenizer, cache, identity)
    except Absent:
        return False
    return True


def _training(r: Training) -> float | None:
    """Return the tokens of a recovery, three passes of the student and one of the teacher each."""
    passes = 3.0 + r.loss.taught
    if r.steps is not None:
        return passes * r.steps * r.accumulate * r.batch * r.sequence
    return None if r.tokens is None else passes * r.tokens


def _read(part: Any) -> float | None:
    """Return how many tokens a perplexity reads, if that is told."""
    return None if part.tokens is None else float(part.tokens * len(part.window))


@torch.no_grad()
def _forward(model: "PreTrainedModel", batch: "Batch") -> float:
    """Return the seconds per token of one forward pass."""
    start = time.perf_counter()
    model(**batch.inputs(model.device))
    return (time.perf_counter() - start) / batch.tokens


def _memory(model: "PreTrainedModel", batches: "list[Batch]") -> float:
    """Return bytes: dense and pruned weights, the text in front of a block, its moments, twice."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    stream = sum(b.tokens for b in batches) * model.config.hidden_size * 4
    moments = sum(s.columns**2 * 4 for s in sites(model) if s.block == 0)
    return 2 * (weights + moments) + stream
