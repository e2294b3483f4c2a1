"""The main line: from an experiment to a smaller model, its measured speedup and its quality."""

import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.evaluation.part import Measured
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.job.closed_loop import SpeedTarget, prune_to_speedup
from pruning.job.outcome import PruningOutcome, compose
from pruning.job.preflight import check_ids, preflight
from pruning.job.recover import recover, recovery_rows
from pruning.job.resume import load_or_prune
from pruning.methods.method import PruningContext
from pruning.models import checkpoint
from pruning.models.allocation import composed, read_allocation, write_allocation
from pruning.models.loaded import LoadedModel
from pruning.models.source import fingerprint
from pruning.models.weights import check_finite
from pruning.results import result
from pruning.results.card import card
from pruning.results.result import Evaluation, Result
from pruning.system.cache import Cache
from pruning.system.device_locks import computing_on
from pruning.system.environment import forget_peaks
from pruning.system.files import write_text
from pruning.system.job import Job
from pruning.system.stopwatch import Stopwatch

log = logging.getLogger(__name__)

SETTLED = "pruned"  # where a job keeps what it pruned while it trains


def run(experiment: Experiment, out: Path, command: str = "", start: Path | None = None) -> Result:
    """Prune a model to a speedup; leave checkpoint, allocation.json and result.json in `out`.

    `start` is where another job left a model that was already pruned to a lower speedup, to go on
    from; speed and quality are compared with those of the dense model all the same.
    """
    transformers.logging.set_verbosity_error()  # its advice on per-layer configs is for authors
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # or it logs every retry twice
    device = experiment.hardware.open()
    forget_peaks()
    with computing_on(device):
        return _run(experiment, out, device, command, start)


def _run(
    experiment: Experiment, out: Path, device: torch.device, command: str, start: Path | None
) -> Result:
    cache, clock = Cache(experiment.cache, experiment.verify_cache), Stopwatch()
    job = Job(out, device, cache, clock, experiment.seed)
    seed, task = job.seed, experiment.task
    suite, missing = experiment.suite.for_task(task).available(cache)
    torch.manual_seed(seed)
    with clock("load"):
        dense, tokenizer = experiment.model.load(cache, device, task)
        preflight(experiment, suite, dense, tokenizer, cache)
    with clock("calibrate"):
        source = {"tokenizer": tokenizer, "cache": cache, "seed": seed, "task": task}
        batches = experiment.calibration.batches(**source)
        rows = recovery_rows(experiment, tokenizer, suite, job)
        check_ids((batch.ids for batch in batches), dense, tokenizer, "calibration")
        check_ids((row["input_ids"] for row in rows), dense, tokenizer, "recovery")
    if task is not None:
        with clock("finetune"):
            dense = task.fine_tune(dense, tokenizer, cache)
    given, identity = dense, fingerprint(dense)
    if start is not None:
        with clock("load"):
            attention = experiment.model.implementation
            given = checkpoint.load(start / "model", dense.dtype, device, attention)
    with clock("profile"):
        sites = experiment.method.sites(dense)
        table = experiment.hardware.profile(dense, sites, cache, experiment.runtime)
        if experiment.speedup is not None:
            table.check(experiment.speedup, sites, experiment.hardware.name)
    with clock("evaluate"):  # before the long stages, so that a bad suite is noticed now
        before = suite.evaluate(dense, tokenizer, cache, identity)
        if said := before.not_finite():
            raise ValueError(
                f"model={experiment.model.name}: of the dense model {said}, computed in "
                f"{dense.dtype}: give model.dtype=float32 if it overflows, or another "
                "checkpoint or suite"
            )
        shared = suite.shared([r for b in batches for r in b.rows()], tokenizer, cache)
    plan = experiment.method.plan(
        PruningContext(
            given,
            identity if given is dense else fingerprint(given),
            batches,
            partial(experiment.calibration.up_to, **source),
            experiment.calibration,
            table,
            experiment.search,
            experiment.speedup,
            seed,
            cache,
            clock,
        )
    )
    target = SpeedTarget(experiment.speedup, experiment.hardware, experiment.runtime)
    prune = partial(prune_to_speedup, dense, plan, table, target, clock)
    met = load_or_prune(experiment, out / SETTLED, dense, prune)
    if start is not None:
        former = read_allocation(start / "allocation.json", sites)
        met = replace(met, allocation=composed(former, met.allocation))
    with clock("evaluate"):
        after = judged(suite, met.pruned, tokenizer, cache)
    loaded, one_shot = LoadedModel(dense, tokenizer), {}
    met, recovered = recover(experiment, met, loaded, rows, suite, job)
    if recovered is not None:
        with clock("evaluate"):
            one_shot, after = after.metrics, judged(suite, met.pruned, tokenizer, cache)
    numbers = before.metrics, after.metrics, after.read, missing, one_shot, shared, before.windows
    with clock("save"):
        result.write_samples({"dense": before.samples, "pruned": after.samples}, out)
        checkpoint.save(met.pruned, tokenizer, out / "model", "")
        write_allocation(met.allocation, out / "allocation.json")
        table.write(out / "latency.json")
    outcome = PruningOutcome(dense, met, table, plan, Evaluation(*numbers), recovered)
    written = compose(experiment, outcome, job, command)
    write_text(card(written), out / "model" / "README.md")
    result.write(written, out / "result.json")
    shutil.rmtree(out / SETTLED, ignore_errors=True)
    return written


def judged(
    suite: Suite, pruned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache
) -> Measured:
    """Evaluate a pruned model, and say what is not finite; ValueError where its weights are not."""
    check_finite(pruned, "method: the pruned model", "give model.dtype=float32, or ask for less")
    measured = suite.evaluate(pruned, tokenizer, cache)
    if said := measured.not_finite():
        log.warning("NOT FINITE, this pruned model is of no use: %s", said)
    return measured
