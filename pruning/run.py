"""The main line: from an experiment to a smaller model, its measured speedup and its quality."""

import logging
from pathlib import Path

import torch
import transformers

from pruning.calibration.moments import Moments
from pruning.experiment import Experiment
from pruning.latency.meet import meet
from pruning.methods.levels import Levels
from pruning.models import checkpoint
from pruning.models.sites import sites
from pruning.models.source import fingerprint
from pruning.results import report, result
from pruning.results.cache import Cache
from pruning.results.card import card
from pruning.results.result import Result
from pruning.results.stopwatch import Stopwatch
from pruning.search.problem import pose

log = logging.getLogger(__name__)


def run(experiment: Experiment, out: Path, command: str = "") -> Result:
    """Prune a model to a speedup; leave checkpoint, allocation.json and result.json in `out`."""
    transformers.logging.set_verbosity_error()  # its advice on per-layer configs is for authors
    cache, clock = Cache(experiment.cache), Stopwatch()
    device = experiment.hardware.open()
    torch.manual_seed(experiment.seed)
    with clock("load"):
        dense, tokenizer = experiment.model.load(cache, device)
        identity = fingerprint(dense)
    with clock("calibrate"):
        batches = experiment.calibration.batches(tokenizer, cache, experiment.seed)
    with clock("profile"):
        table = experiment.hardware.profile(dense, cache)
        table.check(experiment.speedup, sites(dense), experiment.hardware.name)
    with clock("calibrate"):
        moments = Moments.of(dense, identity, batches, experiment.calibration, cache)
    with clock("levels"):
        levels = Levels.of(dense, moments, experiment.method, table, cache)
    with clock("search"), experiment.search.trial(dense, levels, batches) as trial:
        problem = pose(levels, table, trial, cache)
        choose = experiment.search.prepare(problem, table.budget(experiment.speedup))
    with clock("measure"):
        met = meet(dense, levels, table, choose, experiment.hardware, experiment.speedup)
    with clock("evaluate"):
        evaluation = {
            "dense": experiment.suite.dense(dense, tokenizer, identity, cache),
            "pruned": experiment.suite.evaluate(met.pruned, tokenizer, cache),
        }
    found = result.compose(experiment, out.name, dense, met, evaluation, clock.total())
    with clock("save"):
        checkpoint.save(met.pruned, tokenizer, out / "model", card(found, command))
        result.write_allocation(met.allocation, out / "allocation.json")
    found.seconds = clock.total()
    result.write(found, out / "result.json")
    experiment.tracker.report(found, out)
    report.show(found, out)
    return found
