"""How often does the closed loop truly meet the target? One JSON line.

    python benchmarks/closed_loop.py [--jobs 300] [--noise 0.01 0.02 0.05 0.1] [overrides]

The loop, the knapsack, the timing and its stopping rule are the real ones; only the clock is not:
every pass of a model takes its true time, times log-normal noise. The true speedup is what the
table predicts, off by one factor per job (5 %) and by a little for every allocation (1 %).
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import PreTrainedModel

from pruning.composition import compose
from pruning.job.closed_loop import SpeedTarget, prune_to_speedup
from pruning.latency import timer
from pruning.latency.grid import Levels as Costs
from pruning.latency.grid import heads
from pruning.latency.local import Local
from pruning.latency.measurement import Measurement
from pruning.latency.table import LatencyTable, Shapes
from pruning.latency.timer import Timing, in_turns
from pruning.methods.method import Plan
from pruning.models.allocation import first_units
from pruning.models.shape import Width
from pruning.models.sites import Allocation, Kind, Site
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.torch_eager import EAGER
from pruning.runtimes.workload import Phase, Workload
from pruning.search.knapsack import knapsack
from pruning.system.stopwatch import Stopwatch

FACTOR, ALLOCATION = 0.05, 0.01  # what the table is off by, log-normal
DENSE = 130.0  # ms: SmolLM2-135M, 256 tokens, two cores
TARGETS = (1.25, 1.5, 2.0)


class Clock:
    """Stands in for the module `time`: only the models that are timed take time."""

    def __init__(self) -> None:
        self.ns = 0.0

    def perf_counter_ns(self) -> int:
        """Return nanoseconds."""
        return int(self.ns)

    def perf_counter(self) -> float:
        """Return seconds."""
        return self.ns / 1e9


class StandIn(PreTrainedModel):
    """A model of which nothing is known but how long it truly takes."""

    def __init__(self, ms: float):
        torch.nn.Module.__init__(self)
        self.ms = ms


class Simulated(Local):
    """Times stand-ins, on a clock of its own."""

    def __init__(self, noise_of_pairs: float, random: Random, **options: Any) -> None:
        super().__init__(**options)
        self.noise_of_pairs, self.random, self.now = noise_of_pairs, random, Clock()

    def measurement(self, model: PreTrainedModel, runtime: Runtime = EAGER) -> Measurement:
        """Return how stand-ins are timed."""
        work = Workload(Phase.prefill, self.batch, self.sequence_length)
        repeats = self.repetitions, self.alignment, self.noise, self.tolerance, self.rounds
        return _Clocked(runtime, work, *repeats, self)

    def time(
        self, dense: PreTrainedModel, pruned: PreTrainedModel, pairs: tuple[int, float]
    ) -> tuple[Timing, Timing]:
        """Time both, as on real hardware, by the real rules."""

        def passing(model: PreTrainedModel) -> Callable[[], None]:
            assert isinstance(model, StandIn)

            def call() -> None:
                noise = self.random.gauss(0, self.noise_of_pairs / math.sqrt(2))
                self.now.ns += 1e6 * model.ms * math.exp(noise)

            return call

        device = torch.device("meta")  # neither CUDA nor a CPU that others take away
        with patch.multiple(timer, time=self.now, track=lambda rounds, *_, **__: rounds):
            return in_turns((passing(dense), passing(pruned)), device, *pairs, "")


@dataclass(frozen=True)
class _Clocked(Measurement):
    local: Simulated

    def compare(
        self, dense: PreTrainedModel, pruned: PreTrainedModel, confirm: bool = False
    ) -> tuple[Timing, Timing]:
        return self.local.time(dense, pruned, self.pairs(confirm))


class Levels:
    """Sites and times in the proportions of SmolLM2-135M; choices by the knapsack, each once."""

    def __init__(self, blocks: int):
        self.table, self.sites = small_model(blocks)
        table, sites, self.chosen = self.table, self.sites, {}
        random = np.random.default_rng(0)
        self.levels = [table.levels(site) for site in sites]
        self.ms = [
            np.array([table.ms(s, level) for level in shares])
            for s, shares in zip(sites, self.levels, strict=True)
        ]
        self.loss = [
            math.exp(random.standard_normal()) * (1 - row / row[0]) ** random.uniform(1.5, 3)
            for row in self.ms
        ]

    def choose(self, budget: float) -> Shapes | None:
        """Return the shapes of the least loss within a budget, in steps of 1/5000 of the dense."""
        steps = math.floor(5000 * budget / DENSE)
        if steps not in self.chosen:
            within = steps / 5000 * DENSE - self.table.rest
            self.chosen[steps] = knapsack(self.loss, self.ms, within)
        choice = self.chosen[steps]
        if choice is None:
            return None
        pairs = zip(self.sites, self.levels, choice, strict=True)
        return {site: levels[level] for site, levels, level in pairs}


class Allocations(Plan):
    """What the levels allow, built as stand-ins."""

    def __init__(self, levels: Levels, true: Callable[[Shapes], float]):
        self.levels, self.true = levels, true

    def choose(self, budget: float) -> Shapes | None:
        """Return the shapes of the least loss within a budget."""
        return self.levels.choose(budget)

    def build(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Return a stand-in, and what an allocation of these shapes keeps."""
        kept = {site: first_units(site, shape) for site, shape in shapes.items()}
        return StandIn(self.true(shapes)), kept


def small_model(blocks: int) -> tuple[LatencyTable, list[Site]]:
    """Return a table, and its sites."""
    sites = []
    for block in range(blocks):
        sites += [Site(block, Kind.ATTENTION, 9, 64, 3), Site(block, Kind.FFN, 1536, 1)]
    attention = {left: 0.3 * left.groups / 3 + 0.5 * left.units / 9 for left in heads(3, 3)}
    ffn = {Width(w): 2.2 * w / 1536 for w in range(1536, -1, -32)}
    scale = 0.7 * DENSE / (3.0 * blocks)
    parts: dict[str, Costs] = {
        name: {level: scale * ms for level, ms in cost.items()}
        for name, cost in (("attention", attention), ("ffn", ffn))
    }
    return LatencyTable(parts, 0.3 * DENSE, blocks, 1.0, DENSE), sites


def job(seed: int, noise: float, hardware: dict, levels: Levels) -> dict:
    """Run one closed loop; return what it reports and what is true, over the target."""
    random, target, table = Random(seed), TARGETS[seed % len(TARGETS)], levels.table
    factor = math.exp(random.gauss(0, FACTOR))

    def true(shapes: Shapes) -> float:
        own = Random(f"{seed} {[shape.plain for shape in shapes.values()]}").gauss(0, ALLOCATION)
        return table.total(shapes) / (factor * math.exp(own))

    here = Simulated(noise, random, **hardware)
    plan = Allocations(levels, true)
    met = prune_to_speedup(StandIn(DENSE), plan, table, SpeedTarget(target, here), Stopwatch())
    assert isinstance(met.pruned, StandIn)
    assert met.measured is not None
    return {
        "true": DENSE / met.pruned.ms / target,
        "reported": met.measured / target,
        "rounds": sum(not entry["confirms"] for entry in met.rounds),
        "timings": len(met.rounds),
        "seconds": here.now.perf_counter(),
    }


def summary(jobs: list[dict], tolerance: float) -> dict:
    """Return how often the target is truly met, how often that is reported, and the spread."""

    def within(key: str, rows: list[dict]) -> float:
        return round(fmean(abs(row[key] - 1) <= tolerance for row in rows), 3) if rows else 0.0

    said = [row for row in jobs if abs(row["reported"] - 1) <= tolerance]
    off = sorted(abs(row["true"] - 1) for row in jobs)
    wrong = [row["reported"] / row["true"] - 1 for row in jobs]
    return {
        "truly_met": within("true", jobs),
        "reported_met": within("reported", jobs),
        "truly_met_of_reported": within("true", said),
        "off_p50": round(off[len(off) // 2], 4),
        "off_p95": round(off[int(0.95 * len(off))], 4),
        "reported_over_true_mean": round(fmean(wrong), 4),
        "reported_over_true_rms": round(math.sqrt(fmean(x * x for x in wrong)), 4),
        "rounds": round(fmean(row["rounds"] for row in jobs), 2),
        "timings": round(fmean(row["timings"] for row in jobs), 2),
        "seconds": round(fmean(row["seconds"] for row in jobs), 1),
    }


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.02, 0.05, 0.1])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments, overrides = parser.parse_known_args()
    local = compose(overrides).hardware
    assert isinstance(local, Local)
    hardware, levels = dict(vars(local)), Levels(arguments.blocks)
    rows = []
    for noise in arguments.noise:
        seeds = range(arguments.seed, arguments.seed + arguments.jobs)
        jobs = [job(s, noise, hardware, levels) for s in seeds]
        rows.append({"noise": noise, **summary(jobs, local.tolerance)})
    print(json.dumps({"benchmark": "closed_loop", "jobs": arguments.jobs, "rows": rows}))


if __name__ == "__main__":
    main()
