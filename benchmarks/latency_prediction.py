"""How well does the latency table predict whole models? One JSON line.

    python benchmarks/latency_prediction.py [--allocations 20] [overrides of the command line]

Draws allocations (heads, widths, sub-blocks gone) of all sizes, predicts how fast each is, and
measures it, interleaved with the dense model. An error is that of the time relative to the dense
model's: predicted over measured, less 1. Weights are cut, not solved: they do not matter to time.
"""

import argparse
import json
import random
import sys
from statistics import fmean

import torch

from pruning.composition import compose
from pruning.experiment import Experiment
from pruning.latency.table import LatencyTable, Shapes
from pruning.latency.timer import speedup
from pruning.models.allocation import first_units
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import Site, sites
from pruning.system.cache import Cache


def draw(prunable: list[Site], table: LatencyTable, generator: random.Random) -> Shapes:
    """Draw a level for every site: near a share of its own for each allocation, or gone."""
    share, gone = generator.uniform(0.15, 1.0), generator.uniform(0.0, 0.4)
    drawn: Shapes = {}
    for site in prunable:
        levels = table.levels(site)
        if generator.random() < gone and not levels[-1].units:
            drawn[site] = levels[-1]
            continue
        most = max(0, min(len(levels) - 2, round((1 - share) * 2 * len(levels))))
        drawn[site] = levels[generator.randint(0, most)]
    return drawn


def predict(experiment: Experiment, allocations: int, seed: int) -> tuple[LatencyTable, dict]:
    """Return the table, and what it predicted of so many allocations; a row each on stderr.

    ValueError where nothing can be measured.
    """
    hardware, cache = experiment.hardware, Cache(experiment.cache)
    dense = experiment.model.skeleton(cache, hardware.open(), experiment.task)
    if (how := hardware.measurement(dense, experiment.runtime)) is None:
        raise ValueError(f"hardware={hardware.name} cannot measure: predictions need local")
    prunable = sites(dense)
    table = hardware.profile(dense, prunable, cache, experiment.runtime)
    generator = random.Random(seed)
    rows = []
    for _ in range(allocations):
        shapes = draw(prunable, table, generator)
        with torch.no_grad():
            pruned = shrink_(
                copy_sharing_weights(dense),
                {site: first_units(site, left) for site, left in shapes.items()},
            )
        predicted = table.dense / table.total(shapes)
        measured, doubt = speedup(*how.compare(dense, pruned))
        row = {"predicted": predicted, "measured": measured, "stderr": doubt}
        row["error"] = measured / predicted - 1  # of the time
        rows.append({key: round(value, 4) for key, value in row.items()})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    errors = [abs(row["error"]) for row in rows]
    return table, {
        "benchmark": "latency_prediction",
        "model": experiment.model.name,
        **table.setting,
        "allocations": len(rows),
        "mean_error": round(fmean(errors), 4),
        "worst_error": round(max(errors), 4),
        "bias": round(fmean(row["error"] for row in rows), 4),
        "residuals": {name: round(off, 4) for name, off in table.residuals().items()},
        "scales": {name: round(scale, 3) for name, scale in table.scales.items()},
        "rows": rows,
    }


def main() -> None:
    """Print a row per allocation on stderr, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--allocations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments, overrides = parser.parse_known_args()
    _, line = predict(compose(overrides), arguments.allocations, arguments.seed)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
