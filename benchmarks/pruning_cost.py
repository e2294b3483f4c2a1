"""What does each method's pruning cost, in dense forward passes? One JSON line.

    python benchmarks/pruning_cost.py [--methods ziplm,slimgpt,...] [overrides of the command line]

Every method prunes in a process of its own, from moments on; nothing of it comes from a cache.
Model, latency table and calibration text are loaded before the clock starts. The unit is one
forward pass of the dense model over all calibration tokens, head included, timed in the same
process before and after.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pruning.composition import compose
from pruning.methods.method import PruningContext
from pruning.models.loaded import LoadedModel
from pruning.system.cache import Cache
from pruning.system.environment import peaks
from pruning.system.job import Job
from pruning.system.stopwatch import Stopwatch

METHODS = "ziplm,slimgpt,uniform_ffn,depth,flap,wanda_sp,magnitude,random"
SOLVES = ("levels", "solve")
PASSES = ("calibrate", "levels", "search", "prune")


@torch.no_grad()
def forward(model, batches) -> float:
    """Return the seconds of one pass over the text."""
    start = time.perf_counter()
    for batch in batches:
        model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    return time.perf_counter() - start


def cost(method: str, overrides: list[str]) -> dict:
    """Prune once; return seconds, ratios to a forward pass, and the peak of memory."""
    experiment = compose([f"method={method}", *overrides])
    cache, clock = Cache(experiment.cache), Stopwatch()
    model, tokenizer = experiment.model.load(cache, experiment.hardware.open())
    table = experiment.hardware.profile(model, experiment.method.sites(model), cache)
    seed = experiment.seed
    text = experiment.calibration.load(tokenizer, cache, seed)
    assert experiment.speedup is not None
    before = forward(model, text.batches)
    with tempfile.TemporaryDirectory() as fresh:
        job = Job(Path(fresh), model.device, Cache(fresh), clock, seed)
        choice = table, experiment.search, experiment.speedup
        context = PruningContext(LoadedModel(model, tokenizer), text, *choice, job)
        plan = experiment.method.plan(context)
        shapes = plan.choose(table.budget(experiment.speedup))
        assert shapes is not None
        with clock("prune"):
            plan.build(shapes)
    after = forward(model, text.batches)
    unit, seconds = (before + after) / 2, clock.seconds
    total = sum(seconds.get(stage, 0.0) for stage in PASSES)
    solves = sum(seconds.get(stage, 0.0) for stage in SOLVES)
    return {
        "method": method,
        "tokens": sum(batch.tokens for batch in text.batches),
        "forward_s": round(unit, 1),
        "forward_spread": round(abs(after - before) / unit, 3),
        "seconds": {stage: round(spent, 1) for stage, spent in seconds.items()},
        "total_s": round(total, 1),
        "forward_passes": round(total / unit, 2),
        "without_solves": round((total - solves) / unit, 2),
        "peak_gib": round(peaks()[0], 2),
    }


def main() -> None:
    """Print one JSON line with a row per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=METHODS, help="separated by commas")
    parser.add_argument("--one", action="store_true", help="in this process; for this script's use")
    arguments, overrides = parser.parse_known_args()
    if arguments.one:
        print(json.dumps(cost(arguments.methods, overrides)))
        return
    rows = []
    for method in arguments.methods.split(","):
        command = [sys.executable, __file__, "--one", *overrides, "--methods", method]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "pruning_cost", "rows": rows}))


if __name__ == "__main__":
    main()
