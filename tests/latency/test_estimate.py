"""How long a table takes is said beforehand: about as long as measuring it does."""

import time
from dataclasses import dataclass
from typing import Any

import pytest

from pruning.latency.estimate import profile_seconds
from pruning.latency.measurement import Measurement
from pruning.latency.profile import profile
from pruning.models.sites import Kind, sites
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.workload import Phase, Workload
from tests.helpers.families import llama

LOADS, RUNS = 0.02, 0.002  # seconds, of a block


@dataclass
class Slow(Runtime):
    """Takes so long to load a block, and to run one."""

    name: str = "slow"
    phases = tuple(Phase)
    version = "1"

    def call(self, count: float) -> Any:
        time.sleep(LOADS * count)
        return lambda: time.sleep(RUNS * count)

    def end_to_end(self, model, work):
        shapes = [s for s in sites(model) if s.units]
        return self.call(len(shapes) / 2)

    def block(self, model, work):
        return lambda block, index=0: self.call(1.0)


@pytest.mark.parametrize("phase", ["prefill", "generate"])
def test_an_estimate_is_of_the_order_of_what_measuring_takes(phase):
    model = llama()
    work = Workload(Phase(phase), 1, 9, 4 if phase == "generate" else 0)
    how = Measurement(Slow(), work, 4, 8, None, 0.1, 2)
    told = profile_seconds(model, how, sites(model))
    start = time.perf_counter()
    profile(model, how, sites(model))
    took = time.perf_counter() - start
    assert took / 3 < told < 3 * took


def test_more_levels_take_longer():
    model = llama()
    how = Measurement(Slow(), Workload(Phase.prefill, 1, 9), 4, 8, None, 0.1, 2)
    ffn = [site for site in sites(model) if site.kind is Kind.FFN]
    assert profile_seconds(model, how, ffn) < profile_seconds(model, how, sites(model))
    assert profile_seconds(model, how, []) > 0
