"""Which search finds the better model for its cost? One JSON line.

    python benchmarks/searches.py [--targets 1.25 1.5] [--searches uniform calibrated] [overrides]

All searches see the same levels and the same latency table (those of the default job, from its
cache) and must meet the same predicted budget. The solution of each is judged by the KL divergence
from the dense model on calibration text that no search has seen. What searches measure is measured
anew in every run.
"""

import argparse
import json
import tempfile
import time

import torch

from pruning.calibration.moments import Moments
from pruning.composition import compose
from pruning.methods.leveled import Leveled
from pruning.models.loaded import LoadedModel
from pruning.search.options import Objective
from pruning.search.problem import build_problem
from pruning.search.search import LevelSearch
from pruning.search.text import evaluation_text
from pruning.search.trial import CandidateEvaluator
from pruning.solver.folds import Folds
from pruning.solver.levels import Levels
from pruning.system.cache import Cache

SEARCHES = {
    "uniform": ["search=uniform"],
    "dp on held-out errors": ["search=spdy", "search.inits=0", "search.steps=0"],
    "spdy, 20 + 60": ["search=spdy", "search.inits=20", "search.steps=60", "search.tokens=256"],
    "calibrated": [],
    "calibrated, fisher": ["search.sensitivity=fisher"],
    "calibrated, 20 steps": ["search.steps=20"],
}
JUDGE_TOKENS = 2048


@torch.no_grad()
def main() -> None:
    """Print one JSON line with a row per search and target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=float, nargs="+", default=[1.25, 1.5])
    parser.add_argument("--searches", nargs="+", default=[*SEARCHES], choices=[*SEARCHES])
    arguments, overrides = parser.parse_known_args()
    experiment = compose(overrides)
    assert isinstance(experiment.method, Leveled)
    cache = Cache(experiment.cache)
    model, tokenizer = experiment.model.load(cache, experiment.hardware.open())
    sites = experiment.method.sites(model)
    table = experiment.hardware.profile(model, sites, cache)
    batches = experiment.calibration.batches(tokenizer, cache, experiment.seed)
    loaded = LoadedModel(model, tokenizer)
    moments = Moments.collect(loaded, batches, experiment.calibration, sites, cache)
    levels = Levels.from_moments(model, moments, experiment.method, table, cache)
    if experiment.method.folds(model):
        given = loaded, batches, experiment.calibration, experiment.method.ridges
        levels.folds = Folds.collect(*given, moments, cache)
    held_out = [batch for batch in batches if batch.held_out]
    fresh = evaluation_text(held_out[2:], JUDGE_TOKENS, [None])  # searches read the first two
    own = tempfile.TemporaryDirectory()  # a search that is found in a cache takes no time
    rows = []
    for target in arguments.targets:
        for name in arguments.searches:
            search = compose([*overrides, *SEARCHES[name]]).search
            assert isinstance(search, LevelSearch)
            evaluations = 0
            start = time.perf_counter()
            with search.trial(model, levels, batches) as trial:
                problem = build_problem(levels, table, trial, Cache(own.name), experiment.seed)
                choice = search.prepare(problem, table.budget(target))(table.budget(target))
                if trial is not None:
                    evaluations = trial.evaluations
            seconds = time.perf_counter() - start
            row = {"target": target, "search": name, "seconds": round(seconds, 1)}
            row["evaluations"] = evaluations
            if choice is not None:
                row["predicted"] = round(table.dense / problem.total(choice), 4)
                with CandidateEvaluator(model, levels, fresh, Objective.kl) as t:
                    row["kl"] = round(t.evaluate(choice), 4)
            rows.append(row)
            print(json.dumps(row), flush=True)
    own.cleanup()
    print(json.dumps({"benchmark": "searches", "judge_tokens": JUDGE_TOKENS, "rows": rows}))


if __name__ == "__main__":
    main()
