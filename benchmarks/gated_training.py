"""How much faster does a training step with gates become as they close? One JSON line.

    python benchmarks/gated_training.py [--alive 1 0.75 0.5 0.25] [overrides of the command line]

One forward and backward pass of the gated model over `method.batch_size` sequences, the gates of a
share of the terms of every projection open and the others closed; and of the dense model.
Interleaved, medians. `flops` is what the products of the open terms would take, in the dense
model's.
"""

import argparse
import json
from copy import deepcopy
from functools import partial

import torch

from pruning.calibration.moments import Moments
from pruning.composition import compose
from pruning.latency.local import Local
from pruning.latency.table import Shapes
from pruning.latency.timer import Rounds, interleaved
from pruning.methods.flop.flop import FLOP
from pruning.methods.flop.gates import GatedLowRank
from pruning.methods.flop.gating import gated_
from pruning.models.loaded import LoadedModel
from pruning.models.shape import Width
from pruning.models.sites import projection, weight
from pruning.system.cache import Cache

CLOSED, OPEN = -50.0, 50.0  # log_alpha beyond any noise


def main() -> None:
    """Print one JSON line with a row per share of open gates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alive", type=float, nargs="+", default=[1.0, 0.75, 0.5, 0.25])
    arguments, overrides = parser.parse_known_args()
    experiment = compose(["method=flop", "method.room=1", *overrides])
    assert isinstance(experiment.method, FLOP)
    assert isinstance(experiment.hardware, Local)
    cache = Cache(experiment.cache)
    model, tokenizer = experiment.model.load(cache, experiment.hardware.open())
    batches = experiment.calibration.batches(tokenizer, cache, experiment.seed)
    sites = experiment.method.sites(model)
    loaded = LoadedModel(model, tokenizer)
    moments = Moments.collect(loaded, batches, experiment.calibration, sites, cache)
    ranks: Shapes = {}
    for site in sites:
        rows, columns = weight(projection(model, site)).shape
        ranks[site] = Width(
            rows * columns // (rows + columns)
        )  # as many parameters as the dense one
    gated = gated_(deepcopy(model), moments, ranks, experiment.method).train()
    ids = torch.cat([batch.ids for batch in batches])[: experiment.method.batch_size].to(
        model.device
    )

    @torch.enable_grad()
    def step(gated, share: float) -> None:
        if share:
            for site in sites:
                module = projection(gated, site)
                assert isinstance(module, GatedLowRank)
                alpha = module.gates.log_alpha.data
                alpha[:] = CLOSED
                alpha[: max(1, round(share * len(alpha)))] = OPEN
        gated(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gated.zero_grad(set_to_none=True)

    calls = {share: partial(step, gated, share) for share in arguments.alive}
    calls |= {0.0: partial(step, model, 0.0)}
    timings = interleaved(calls, model.device, Rounds(experiment.hardware.repetitions), "steps")
    dense = sum(weight(projection(model, site)).numel() for site in sites)
    started = sum(p.numel() for site in sites for p in projection(gated, site).parameters())
    result = [
        {
            "alive": share,
            "ms": round(timings[share].p50),
            "of_dense": round(timings[share].p50 / timings[0.0].p50, 3),
            "flops": round(share * started / dense, 3),
            "spread": round(timings[share].spread, 2),
        }
        for share in arguments.alive
    ]
    print(json.dumps({"benchmark": "gated_training", "tokens": ids.numel(), "rows": result}))


if __name__ == "__main__":
    main()
