"""Timing calls: interleaved, medians kept with their spread."""

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from pruning.results.progress import track

Name = TypeVar("Name", bound=Hashable)


@dataclass
class Timing:
    """Raw milliseconds of one thing, in the order they were measured."""

    values: list[float]

    @property
    def p50(self) -> float:
        """Return the median."""
        return float(np.percentile(self.values, 50))

    @property
    def p90(self) -> float:
        """Return the 90th percentile."""
        return float(np.percentile(self.values, 90))

    @property
    def spread(self) -> float:
        """Return p90 / p50, 1 on a silent machine."""
        return self.p90 / self.p50


def speedup(before: Timing, after: Timing) -> tuple[float, float]:
    """Return the median of the ratios of interleaved pairs, and the standard error of it.

    Two calls of one round meet the same spell of a shared machine, so their ratio is steadier than
    the ratio of the medians. The error of a median is 1.253 sigma / sqrt(n), with sigma taken as
    the interquartile range / 1.349.
    """
    ratios = np.array(before.values) / np.array(after.values)
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return float(middle), float(0.93 * (high - low) / np.sqrt(len(ratios)))


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Time one call: CUDA events on a GPU, the performance counter elsewhere."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    start_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start_ns) / 1e6


@torch.no_grad()
def interleaved(
    calls: Mapping[Name, Callable[[], object]],
    device: torch.device,
    repetitions: int,
    description: str,
    enough: Callable[[dict[Name, Timing]], bool] | None = None,
    seed: int = 0,
) -> dict[Name, Timing]:
    """Time every call once per round, in a new random order each round, after a warm-up round.

    A slow spell of a shared machine then meets all of them alike. With `enough`, rounds beyond
    `repetitions` follow until it is satisfied, up to as many again.
    """
    order: Sequence[Name] = list(calls)
    shuffle = random.Random(seed).shuffle
    for name in order:
        calls[name]()
    found: dict[Name, Timing] = {name: Timing([]) for name in order}
    rounds = 2 * repetitions if enough else repetitions
    for index in track(range(rounds), description, total=rounds):
        if enough and index >= repetitions and enough(found):
            break
        shuffle(order)
        for name in order:
            found[name].values.append(milliseconds(calls[name], device))
    return found
