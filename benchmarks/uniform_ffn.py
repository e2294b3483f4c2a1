"""A fifth of every FFN removed, nothing else: what is the solver alone worth? One JSON line.

    python benchmarks/uniform_ffn.py CALIBRATION_TEXT EVALUATION_TEXT [overrides]

The same number of channels goes in every block (search=uniform without a latency table); token
perplexity on the first 8 windows of 1024 tokens of EVALUATION_TEXT, dense and pruned.
"""

import json
import sys

import torch

from pruning.calibration.moments import Moments
from pruning.evaluation.perplexity import token_perplexity, tokenize
from pruning.experiment import compose
from pruning.methods.leveled import Leveled
from pruning.methods.levels import Levels
from pruning.models.sites import Kind, projection, set_weight_, sites, weight
from pruning.models.source import fingerprint
from pruning.results.cache import Cache
from pruning.results.progress import track

REMOVED = 0.2
WINDOW, WINDOWS = 1024, 8


@torch.no_grad()
def main() -> None:
    """Print one JSON line."""
    calibration, evaluation, *overrides = sys.argv[1:]
    experiment = compose(
        [
            "calibration=text",
            f"calibration.text.path={calibration}",
            "calibration.tokens=33792",
            "calibration.sequence=1024",
            "calibration.batch=2",
            "tracker=none",
            *overrides,
        ]
    )
    assert isinstance(experiment.method, Leveled)
    cache = Cache(experiment.cache)
    model, tokenizer = experiment.model.load(cache, experiment.hardware.open())
    with open(evaluation) as file:
        tokens = tokenize(tokenizer, [file.read()], None)[: WINDOW * WINDOWS]
    dense = token_perplexity(model, tokens, WINDOW, 1)
    batches = experiment.calibration.batches(tokenizer, cache, experiment.seed)
    moments = Moments.of(
        model, fingerprint(model), batches, experiment.calibration, sites(model), cache
    )
    chosen = {}
    for site in track([s for s in sites(model) if s.kind is Kind.FFN], "sites"):
        module = projection(model, site)
        W = weight(module).clone()
        shapes = [site.units, round((1 - REMOVED) * site.units)]
        levels = experiment.method.site_levels(site, W, moments[site], shapes)
        pruned = torch.zeros_like(W)
        pruned[:, levels.keeps[1]] = Levels({site: levels}, moments).kept_weight(site, 1, W)
        set_weight_(module, pruned)
        chosen[site.block] = [levels.score, levels.ridge, round(levels.loss[1], 4)]
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
