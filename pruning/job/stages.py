"""The stages that `run` goes through: each a line of it."""

import logging
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from pruning.calibration.calibration import CalibrationData
from pruning.evaluation.part import Measured
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.job.closed_loop import ClosedLoopResult, SpeedTarget, prune_to_speedup
from pruning.job.preflight import check_ids, preflight
from pruning.job.recover import Material, recovery_material
from pruning.job.resume import load_or_prune
from pruning.job.trim import of_whole
from pruning.latency.table import LatencyTable
from pruning.methods.method import Plan
from pruning.models import checkpoint
from pruning.models.allocation import composed, read_allocation
from pruning.models.loaded import LoadedModel
from pruning.models.streamed import keep_blocks_in_
from pruning.models.weights import check_finite
from pruning.system.job import Job

log = logging.getLogger(__name__)

UNTRAINED = "pruned"  # where a job keeps what it pruned while it trains


def load(experiment: Experiment, suite: Suite, job: Job) -> LoadedModel:
    """Load the dense model; ValueError where it cannot do what the experiment asks for."""
    with job.stopwatch("load"):
        dense = LoadedModel(*experiment.model.load(job.cache, job.device, experiment.task))
        preflight(experiment, suite, dense.model, dense.tokenizer, job.cache)
        keep_blocks_in_(dense.model, job.out / UNTRAINED / "blocks")
    return dense


def read_calibration(experiment: Experiment, dense: LoadedModel, job: Job) -> CalibrationData:
    """Tokenise the calibration text."""
    source = dense.tokenizer, job.cache, job.seed, experiment.task
    with job.stopwatch("calibrate"):
        text = experiment.calibration.load(*source)
        ids = (batch.ids for batch in text.batches)
        check_ids(ids, dense.model, dense.tokenizer, "calibration")
    return text


def read_recovery(
    experiment: Experiment, dense: LoadedModel, text: CalibrationData, suite: Suite, job: Job
) -> Material:
    """Tokenise what the pruned model will be trained on."""
    with job.stopwatch("calibrate"):
        material = recovery_material(experiment, dense.tokenizer, text, suite, job)
        ids = (row["input_ids"] for row in material.rows)
        check_ids(ids, dense.model, dense.tokenizer, "recovery")
    return material


def fine_tune(experiment: Experiment, dense: LoadedModel, job: Job) -> LoadedModel:
    """Train the dense model for the task, if there is one and it has no trained head."""
    if experiment.task is None:
        return dense
    with job.stopwatch("finetune"):
        model = experiment.task.fine_tune(dense.model, dense.tokenizer, job.cache)
    return LoadedModel(model, dense.tokenizer)


def load_start(
    experiment: Experiment, start: Path | None, dense: LoadedModel, job: Job
) -> LoadedModel:
    """Load the model to go on from: one that another job pruned, or the dense one."""
    if start is None:
        return dense
    attention, dtype = experiment.model.implementation, dense.model.dtype
    with job.stopwatch("load"):
        model = checkpoint.load(start / "model", dtype, job.device, attention)
    return LoadedModel(model, dense.tokenizer)


def profile(experiment: Experiment, dense: LoadedModel, job: Job) -> LatencyTable:
    """Time what sites cost; ValueError where the speedup is beyond what all levels give."""
    hardware, speedup = experiment.hardware, experiment.speedup
    with job.stopwatch("profile"):
        sites = experiment.method.sites(dense.model)
        table = hardware.profile(dense.model, sites, job.cache, experiment.runtime)
        table = of_whole(experiment, table, dense, job)
        if speedup is not None:
            table.check(speedup, sites, hardware.name)
    return table


def evaluate_dense(experiment: Experiment, suite: Suite, dense: LoadedModel, job: Job) -> Measured:
    """Measure the dense model; ValueError where a number is not finite."""
    with job.stopwatch("evaluate"):
        whole = dense.reference
        measured = suite.evaluate(whole.model, whole.tokenizer, job.cache, whole.fingerprint)
    if said := measured.not_finite():
        raise ValueError(
            f"model={experiment.model.name}: of the dense model {said}, computed in "
            f"{whole.model.dtype}: give model.dtype=float32 if it overflows, or another "
            "checkpoint or suite"
        )
    return measured


def evaluate_served(
    experiment: Experiment, suite: Suite, dense: LoadedModel, made: ClosedLoopResult, job: Job
) -> dict[str, dict[str, float]]:
    """Measure both models as the runtime answers; nothing where that is what PyTorch answers.

    Not by lm-eval, which has a model of transformers for its own.
    """
    runtime = experiment.runtime
    answered = replace(suite, tasks={}, average=[])
    if not runtime.exports or made.measured is None or not [*answered.parts()]:
        return {}
    pruned, metrics = LoadedModel(made.pruned, dense.tokenizer), {}
    with job.stopwatch("evaluate"):
        for name, loaded in (("dense", dense.reference), ("pruned", pruned)):
            identity = f"{loaded.fingerprint} {runtime.label}"
            given = runtime.served(loaded.model), loaded.tokenizer, job.cache, identity
            metrics[name] = answered.evaluate(*given).metrics
    return metrics


def shared_rows(
    suite: Suite, text: CalibrationData, dense: LoadedModel, job: Job
) -> dict[str, float]:
    """Return the share of calibration rows that hold evaluated text, by part of the suite."""
    with job.stopwatch("evaluate"):
        rows = [row for batch in text.batches for row in batch.rows()]
        return suite.shared(rows, dense.tokenizer, job.cache)


def prune(
    experiment: Experiment,
    start: Path | None,
    dense: LoadedModel,
    plan: Plan,
    table: LatencyTable,
    job: Job,
) -> ClosedLoopResult:
    """Prune until the measured speedup is the target, or take what an earlier start has pruned.

    Its allocation is that of the dense model, also behind a `start` that was cut already.
    """
    target = SpeedTarget(experiment.speedup, experiment.hardware, experiment.runtime)

    def anew() -> ClosedLoopResult:
        given = plan, table, target, job.stopwatch
        made = prune_to_speedup(dense.reference.model, *given)
        return replace(made, updates=tuple(plan.updates))

    made = load_or_prune(experiment, job.out / UNTRAINED, dense.model, anew)
    if start is None:
        return made
    former = read_allocation(start / "allocation.json", experiment.method.sites(dense.model))
    return replace(made, allocation=composed(former, made.allocation))


def evaluate_pruned(
    suite: Suite, pruned: PreTrainedModel, dense: LoadedModel, job: Job
) -> Measured:
    """Measure a pruned model, and say what is not finite; ValueError where its weights are not."""
    check_finite(pruned, "method: the pruned model", "give model.dtype=float32, or ask for less")
    with job.stopwatch("evaluate"):
        measured = suite.evaluate(pruned, dense.tokenizer, job.cache)
    if said := measured.not_finite():
        log.warning("NOT FINITE, this pruned model is of no use: %s", said)
    return measured
