"""The main line: from an experiment to a smaller model, its measured speedup and its quality."""

import logging
from functools import partial
from pathlib import Path

import torch
import transformers

from pruning.experiment import Experiment
from pruning.latency.meet import meet
from pruning.latency.profile import break_even
from pruning.methods.method import Subject
from pruning.models import checkpoint
from pruning.models.source import fingerprint
from pruning.results import report, result
from pruning.results.cache import Cache
from pruning.results.card import card
from pruning.results.result import Evaluation, Result
from pruning.results.stopwatch import Stopwatch
from pruning.results.turns import sharing

log = logging.getLogger(__name__)


def run(experiment: Experiment, out: Path, command: str = "") -> Result:
    """Prune a model to a speedup; leave checkpoint, allocation.json and result.json in `out`."""
    transformers.logging.set_verbosity_error()  # its advice on per-layer configs is for authors
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # or it logs every retry twice
    device = experiment.hardware.open()
    with sharing(device):
        return _run(experiment, out, device, command)


def _run(experiment: Experiment, out: Path, device: torch.device, command: str) -> Result:
    cache, clock = Cache(experiment.cache), Stopwatch()
    seed, task = experiment.seed, experiment.task
    suite, missing = experiment.suite.of(task).available(cache)
    torch.manual_seed(seed)
    with clock("load"):
        dense, tokenizer = experiment.model.load(cache, device, task)
        suite.check(dense)
    if task is not None:
        with clock("finetune"):
            dense = task.teach(dense, tokenizer, cache, seed)
    identity = fingerprint(dense)
    with clock("calibrate"):
        source = {"tokenizer": tokenizer, "cache": cache, "seed": seed, "task": task}
        batches = experiment.calibration.batches(**source)
    with clock("profile"):
        sites = experiment.method.sites(dense)
        table = experiment.hardware.profile(dense, sites, cache)
        if experiment.speedup is not None:
            table.check(experiment.speedup, sites, experiment.hardware.name)
    with clock("evaluate"):  # before the long stages, so that a bad suite is noticed now
        before = suite.evaluate(dense, tokenizer, cache, identity)
    plan = experiment.method.plan(
        Subject(
            dense,
            identity,
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
    met = meet(dense, plan, table, experiment.hardware, experiment.speedup, clock)
    with clock("evaluate"):
        after = suite.evaluate(met.pruned, tokenizer, cache)
    evaluation = Evaluation(before.metrics, after.metrics, after.read, missing)
    found = result.compose(experiment, out.name, dense, met, table, evaluation, clock.total())
    found.training, found.search = list(plan.history), list(plan.searched)
    found.break_even = break_even(dense, sites, table)
    found.command = command
    with clock("save"):
        checkpoint.save(met.pruned, tokenizer, out / "model", card(found))
        result.write_allocation(met.allocation, out / "allocation.json")
        table.write(out / "latency.json")
    found.seconds = clock.total()
    result.write(found, out / "result.json")
    experiment.tracker.report(found, out)
    report.show(found, out)
    return found
