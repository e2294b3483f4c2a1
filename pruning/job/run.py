"""The main line: from an experiment to a smaller model, its measured speedup and its quality."""

import logging
import shutil
from pathlib import Path

import torch
import transformers

from pruning.experiment import Experiment
from pruning.job import stages
from pruning.job.outcome import PruningOutcome, Quality, compose
from pruning.job.recover import recover
from pruning.job.trim import trim
from pruning.methods.method import PruningContext
from pruning.models import checkpoint
from pruning.models.allocation import write_allocation
from pruning.results import result
from pruning.results.card import card
from pruning.results.result import Result
from pruning.system.cache import Cache
from pruning.system.device_locks import computing_on
from pruning.system.environment import forget_peaks
from pruning.system.files import write_text
from pruning.system.job import Job
from pruning.system.stopwatch import Stopwatch


def run(experiment: Experiment, out: Path, command: str = "", start: Path | None = None) -> Result:
    """Prune a model to a speedup; leave checkpoint, allocation.json and result.json in `out`.

    `start` is where another job left a model that was already pruned to a lower speedup, to go on
    from; speed and quality are compared with those of the dense model all the same.
    """
    e, job = experiment, open_job(experiment, out)
    with computing_on(job.device):
        suite, missing = e.suite.for_task(e.task).available(job.cache)
        dense, suite = trim(e, suite, stages.load(e, suite, job), job)
        text = stages.read_calibration(e, dense, job)
        material = stages.read_recovery(e, dense, text, suite, job)
        dense = stages.fine_tune(e, dense, job)
        given = stages.load_start(e, start, dense, job)
        table = stages.profile(e, dense, job)
        before = stages.evaluate_dense(e, suite, dense, job)  # so that a bad suite is noticed now
        shared = stages.shared_rows(suite, text, dense, job)
        plan = e.method.plan(PruningContext(given, text, table, e.search, e.speedup, job))
        made = stages.prune(e, start, dense, plan, table, job)
        one_shot = stages.evaluate_pruned(suite, made.pruned, dense, job)
        made, trained = recover(e, made, dense, material, suite, job)
        after = stages.evaluate_pruned(suite, made.pruned, dense, job) if trained else one_shot
        served = stages.evaluate_served(e, suite, dense, made, job)
        quality = Quality(before, one_shot, after, missing, shared, served)
        outcome = PruningOutcome(dense, made, table, plan, quality, trained)
        return save(e, outcome, job, command)


def open_job(experiment: Experiment, out: Path) -> Job:
    """Open the device and the cache, seed what is random, and start the clocks."""
    transformers.logging.set_verbosity_error()  # its advice on per-layer configs is for authors
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # or it logs every retry twice
    experiment.model.check_path()  # before anything is downloaded
    device, cache = experiment.hardware.open(), Cache(experiment.cache, experiment.verify_cache)
    forget_peaks()
    torch.manual_seed(experiment.seed)
    return Job(out, device, cache, Stopwatch(), experiment.seed)


def save(experiment: Experiment, outcome: PruningOutcome, job: Job, command: str) -> Result:
    """Write the checkpoint and what was measured; result.json last, since it says all is there."""
    made, quality, out = outcome.made, outcome.quality, job.out
    with job.stopwatch("save"):
        samples = {"dense": quality.dense.samples, "pruned": quality.pruned.samples}
        result.write_samples(samples, out)
        checkpoint.save(made.pruned, outcome.dense.tokenizer, out / "model", "")
        write_allocation(made.allocation, out / "allocation.json")
        outcome.table.write(out / "latency.json")
        if experiment.runtime.exports:
            experiment.runtime.export(made.pruned, outcome.dense.tokenizer, out)
    written = compose(experiment, outcome, job, command)
    write_text(card(written), out / "model" / "README.md")
    result.write(written, out / "result.json")
    shutil.rmtree(out / stages.UNTRAINED, ignore_errors=True)
    return written
