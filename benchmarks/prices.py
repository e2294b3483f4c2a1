"""How near is the price of a level that was not measured to its real loss? One JSON line.

    python benchmarks/prices.py [--kept 0.25] [overrides]

A search measures a site at two levels: half of its units, and gone, with the fold that takes it
over; between them it prices levels by their held-out errors. Here the level that keeps a quarter is
measured too, and its price is compared with that of other second anchors: gone without a fold, and
none. Rows: the root mean square of ln(price / real) over the sites of a kind, and the worst one.
"""

import argparse
import json
import math
import sys
from copy import copy

import numpy as np
import torch

from pruning.calibration.moments import Moments
from pruning.composition import compose
from pruning.methods.leveled import Leveled
from pruning.models.loaded import LoadedModel
from pruning.search.problem import Problem, build_problem, calibrate_priors
from pruning.search.search import Calibrated
from pruning.solver.folds import Folds
from pruning.solver.levels import Levels
from pruning.system.cache import Cache


def row(kind: str, anchor: str, ratios: dict[str, float]) -> dict[str, object]:
    """Return the root mean square of logarithms, with all sites and without the worst."""
    logs = {name: abs(math.log(ratio)) for name, ratio in ratios.items()}
    worst = max(logs, key=logs.__getitem__)
    rest = [value for name, value in logs.items() if name != worst]
    rms, best = (math.sqrt(np.square(values).mean()) for values in ([*logs.values()], rest))
    return {
        **{"sites": kind, "second anchor": anchor, "rms": round(rms, 3)},
        **{"worst": worst, "rms without it": round(best, 3)},
    }


@torch.no_grad()
def main() -> None:
    """Print a row per kind of site and anchor on stderr, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kept", type=float, default=0.25)
    arguments, overrides = parser.parse_known_args()
    experiment = compose(overrides)
    method, search, seed = experiment.method, experiment.search, experiment.seed
    assert isinstance(method, Leveled)
    assert isinstance(search, Calibrated)
    cache = Cache(experiment.cache)
    model, tokenizer = experiment.model.load(cache, experiment.hardware.open())
    sites, loaded = method.sites(model), LoadedModel(model, tokenizer)
    table = experiment.hardware.profile(model, sites, cache)
    batches = experiment.calibration.batches(tokenizer, cache, seed)
    moments = Moments.collect(loaded, batches, experiment.calibration, sites, cache)
    bare = Levels.from_moments(model, moments, method, table, cache)
    folded = copy(bare)
    given = loaded, batches, experiment.calibration, method.ridges
    folded.folds = Folds.collect(*given, moments, cache)

    def measured(levels: Levels, anchors: list[float]) -> tuple[Problem, list[dict[int, float]]]:
        with search.trial(model, levels, batches) as trial:
            problem = build_problem(levels, table, trial, cache, seed)
            return problem, problem.sensitivities(anchors)

    with_folds, at_anchors = measured(folded, search.anchors)
    plain, real = measured(bare, [arguments.kept, 0.0])
    ratios: dict[tuple[str, str], dict[str, float]] = {}
    for place, site in enumerate(sites):
        gone = len(plain.shapes[place]) - 1
        (level,) = real[place].keys() - {gone}
        half = {s: loss for s, loss in at_anchors[place].items() if s != gone}
        prices = {
            "gone, with its fold": calibrate_priors(with_folds.loss[place], at_anchors[place]),
            "gone": calibrate_priors(plain.loss[place], half | {gone: real[place][gone]}),
            "none": calibrate_priors(plain.loss[place], half),
        }
        for anchor, price in prices.items():
            of_kind = ratios.setdefault((site.kind.value, anchor), {})
            of_kind[site.name] = float(price[level] / real[place][level])
    rows = [row(*key, of_kind) for key, of_kind in ratios.items()]
    for one in rows:
        print(json.dumps(one), file=sys.stderr)
    print(json.dumps({"benchmark": "prices", "kept": arguments.kept, "rows": rows}))


if __name__ == "__main__":
    main()
