"""What a job keeps of a pruned model while it is trained, and finds again."""

import json

import pytest
import torch

from pruning.composition import compose
from pruning.job.closed_loop import ClosedLoopResult
from pruning.job.resume import load_or_prune
from pruning.latency.timer import Timing
from pruning.models.sites import sites
from tests.helpers.families import llama
from tests.helpers.tiny import INF


def test_all_that_was_found_out_comes_back(tmp_path):
    """Also how weights were solved, an infinite ridge among them."""
    model = llama()
    kept = {site: torch.arange(site.units) % 2 == 0 for site in sites(model)}
    updates = ({"site": "block.0.ffn", "ridge": INF, "share": 0.25},)
    rounds = ({"aim": 1.5, "measured": 1.4},)
    timings = Timing([3.0, 4.0]), Timing([2.0, 2.5])
    first = ClosedLoopResult(model, kept, 1.5, 1.6, 1.4, *timings, rounds, updates)
    experiment = compose(["recovery=distill"])

    def load(prune) -> ClosedLoopResult:
        return load_or_prune(experiment, tmp_path, model, prune)

    def again() -> ClosedLoopResult:
        pytest.fail("it is there")

    for found in (load(lambda: first), load(again)):
        assert (found.updates, found.rounds) == (updates, rounds)
        assert (found.target, found.predicted, found.measured) == (1.5, 1.6, 1.4)
        assert [t.values for t in (found.dense_timing, found.pruned_timing)] == [
            [3.0, 4.0],
            [2.0, 2.5],
        ]
        assert all(torch.equal(keep, found.allocation[site]) for site, keep in kept.items())
    facts = tmp_path / "met.json"
    older = json.loads(facts.read_text())
    del older["updates"]
    facts.write_text(json.dumps(older))
    assert load(again).updates == ()
