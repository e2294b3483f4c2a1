"""A fifth of every FFN removed, nothing else: what is the solver alone worth? One JSON line.

    python benchmarks/uniform_ffn.py CALIBRATION_TEXT EVALUATION_TEXT [overrides]

The same number of channels goes in every block (search=uniform without a latency table); token
perplexity on the first 8 windows of 1024 tokens of EVALUATION_TEXT, dense and pruned. With
calibration.target=dense the kept ones are solved for the dense outputs, behind pruned blocks.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pruning.calibration.calibration import CalibrationData, Target
from pruning.calibration.moments import Moments
from pruning.composition import compose
from pruning.data.batch import Batch
from pruning.data.bos import Bos
from pruning.evaluation.perplexity import token_perplexity
from pruning.experiment import Experiment
from pruning.latency.table import LatencyTable
from pruning.methods.leveled import Leveled
from pruning.methods.method import PruningContext
from pruning.methods.sequential import sequential
from pruning.models.loaded import LoadedModel
from pruning.models.shape import Width
from pruning.models.sites import Allocation, Kind, projection, set_weight_, sites, weight
from pruning.solver.levels import Levels
from pruning.system.cache import Cache
from pruning.system.job import Job
from pruning.system.progress import track
from pruning.system.stopwatch import Stopwatch

REMOVED = 0.2
WINDOW, WINDOWS = 1024, 8


def behind(
    experiment: Experiment, dense: LoadedModel, batches: list[Batch], keeps: Allocation
) -> PreTrainedModel:
    """Prune block by block, each solved for the dense model's outputs behind the pruned ones."""
    assert isinstance(experiment.method, Leveled)
    job = Job(Path(), dense.model.device, Cache(experiment.cache), Stopwatch(), experiment.seed)
    context = PruningContext(
        dense=dense,
        calibration=CalibrationData(experiment.calibration, batches, lambda tokens: batches),
        table=LatencyTable({}, 0.0, 0, 0.0, 0.0),  # no latency takes part
        search=experiment.search,
        speedup=None,
        job=job,
    )
    whole = {site: torch.ones(site.units, dtype=torch.bool) for site in sites(dense.model)} | keeps
    ridges, identity = (
        experiment.method.ridges,
        {site.name: k.tolist() for site, k in keeps.items()},
    )
    pruned, *_ = sequential(context, ridges, lambda site, W, H: whole[site], identity)
    return pruned


@torch.no_grad()
def main() -> None:
    """Print one JSON line."""
    calibration, evaluation, *overrides = sys.argv[1:]
    experiment = compose(
        [
            "calibration=text",
            f"calibration.text.path={calibration}",
            "calibration.tokens=33792",
            "calibration.sequence_length=1024",
            "calibration.batch=2",
            "tracker=none",
            *overrides,
        ]
    )
    assert isinstance(experiment.method, Leveled)
    cache = Cache(experiment.cache)
    model, tokenizer = experiment.model.load(cache, experiment.hardware.open())
    with open(evaluation) as file:
        encode = Bos.text.encoder(tokenizer, "bos")  # as published
        tokens = torch.tensor(encode(file.read())[: WINDOW * WINDOWS])
    dense = token_perplexity(model, tokens, WINDOW, 1)
    batches = experiment.calibration.batches(tokenizer, cache, experiment.seed)
    loaded = LoadedModel(model, tokenizer)
    moments = Moments.collect(loaded, batches, experiment.calibration, sites(model), cache)
    chosen, keeps, originals = {}, {}, {}
    for site in track([s for s in sites(model) if s.kind is Kind.FFN], "sites"):
        module = projection(model, site)
        W = weight(module).clone()
        shapes = [site.whole, Width(round((1 - REMOVED) * site.units))]
        levels = experiment.method.site_levels(site, W, moments[site], shapes)
        pruned = torch.zeros_like(W)
        pruned[:, levels.keeps[1]] = Levels({site: levels}, moments).kept_weight(site, 1, W)
        set_weight_(module, pruned)
        keeps[site], originals[site] = levels.keeps[1], W
        chosen[site.block] = [levels.score, levels.ridge, round(levels.loss[1], 4)]
    if experiment.calibration.target is Target.dense:  # the same channels, solved once more
        for site, W in originals.items():
            set_weight_(projection(model, site), W)
        model = behind(experiment, loaded, batches, keeps)
    after = token_perplexity(model, tokens, WINDOW, 1)
    print(
        json.dumps(
            {
                "benchmark": "uniform_ffn",
                "removed": REMOVED,
                "calibration_tokens": sum(batch.tokens for batch in batches),
                "dense": round(dense, 3),
                "pruned": round(after, 3),
                "chosen": chosen,
            }
        )
    )


if __name__ == "__main__":
    main()
