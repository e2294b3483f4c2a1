"""Timing calls: interleaved, medians kept with their spread."""

import logging
import os
import random
import resource
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import psutil
import torch

from pruning.runtimes.worker_process import running
from pruning.system.progress import track

log = logging.getLogger(__name__)

Name = TypeVar("Name", bound=Hashable)

SECONDS = 10.0  # for which rounds go on that are not enough


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

    @property
    def quantiles(self) -> list[float]:
        """Return the 25th, 50th, 75th and 90th percentile."""
        return [float(value) for value in np.percentile(self.values, [25, 50, 75, 90])]

    @property
    def stderr(self) -> float:
        """Return the standard error of the median."""
        return _stderr(np.array(self.values))


def _stderr(values: np.ndarray) -> float:
    """Return 1.253 sigma / sqrt(n), with sigma taken as the interquartile range / 1.349."""
    low, high = np.percentile(values, [25, 75])
    return float(0.93 * (high - low) / np.sqrt(len(values)))


def speedup(before: Timing, after: Timing) -> tuple[float, float]:
    """Return the median of the ratios of interleaved pairs, and the standard error of it.

    Two calls of one round meet the same spell of a shared machine, so their ratio is steadier than
    the ratio of the medians.
    """
    ratios = np.array(before.values) / np.array(after.values)
    return float(np.median(ratios)), _stderr(ratios)


class Interruptions:
    """Whether other processes have taken CPUs from what is timed, since this was made.

    Of a thread of this process the system says how long it waited for a CPU: on two quiet cores 0
    to 0.05 seconds in a second, and 0.5 with a busy process for each core. All wait for the one
    that waited longest. Where it says no such thing it counts how often they lost a CPU: 17 to 90
    times per second, and 250 times. An engine in a process of its own has threads that take CPUs
    from one another (220 times per second in vLLM): there the CPU time of all others tells.
    """

    LEAST, SHARE = 0.01, 0.15  # seconds that a thread waits, and their share of the time
    FEW, PER_SECOND = 5, 40  # losses of each thread
    LEAST_OTHERS, SHARE_OTHERS = 0.02, 0.1  # CPU seconds of others, and their share of a CPU

    def __init__(self) -> None:
        self.start, self.others = time.perf_counter(), _others()
        self.waited, self.lost = _waited(), _lost()

    def many(self) -> bool:
        """Tell whether there was more than on a quiet machine."""
        seconds = time.perf_counter() - self.start
        if self.others is not None and (others := _others()) is not None:
            return others - self.others > self.LEAST_OTHERS + self.SHARE_OTHERS * seconds
        if self.waited:
            now = _waited()
            waits = [now[thread] - self.waited[thread] for thread in now.keys() & self.waited]
            return max(waits) > self.LEAST + self.SHARE * seconds
        most = self.FEW + self.PER_SECOND * seconds * torch.get_num_threads()
        return _lost() - self.lost > most


def _waited() -> dict[str, float]:
    """Return the seconds that each thread of this process could have run and had no CPU.

    Empty where no file says so.
    """
    waited: dict[str, float] = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that has ended
            on_cpu, waiting, _ = map(int, file.read_text().split())
            if on_cpu:  # else nothing is counted here
                waited[file.parent.name] = waiting / 1e9
    return waited


def _lost() -> int:
    """Count how often the system took a CPU away from this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _others() -> float | None:
    """Return the CPU seconds of all processes but this one and its engines.

    None where it has none, or no file says so.
    """
    engines = running()
    if not engines or not Path("/proc/stat").exists():
        return None
    whole: Any = psutil.cpu_times()
    busy = whole.user + whole.nice + whole.system + whole.irq + whole.softirq + whole.steal
    for process in (os.getpid(), *engines):
        with suppress(psutil.Error):
            times = psutil.Process(process).cpu_times()
            busy -= times.user + times.system
    return busy


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


@dataclass(frozen=True)
class Rounds(Generic[Name]):
    """How often calls are timed."""

    repetitions: int  # rounds, at least
    # with it more follow until it is satisfied, at most as many again, or for ten seconds
    enough: Callable[[dict[Name, Timing]], bool] | None = None
    most: int = 1  # times that a call comes in a round, where it takes less than the mean
    strict: bool = False  # ValueError where other processes disturbed too many


@torch.no_grad()
def interleaved(
    calls: Mapping[Name, Callable[[], object]],
    device: torch.device,
    rounds: "Rounds[Name]",
    description: str,
) -> dict[Name, Timing]:
    """Time every call once per round, in a new random order each round, after a warm-up round.

    A slow spell of a shared machine then meets all of them alike. What comes several times in a
    round has each time a place of its own. A round in which other processes took a CPU away is
    timed again; after `rounds.repetitions` of these it counts, or, if strict, is a ValueError.
    """
    repetitions, enough = rounds.repetitions, rounds.enough
    for call in calls.values():
        call()
    order = [
        name for name, count in _counts(calls, device, rounds.most).items() for _ in range(count)
    ]
    shuffle = random.Random(0).shuffle
    timings: dict[Name, Timing] = {name: Timing([]) for name in calls}
    indices = _rounds(2 * repetitions, SECONDS) if enough else range(repetitions)
    patience = repetitions if device.type == "cpu" else 0
    for index in track(indices, description, total=(1 + bool(enough)) * repetitions):
        if enough and index >= repetitions and enough(timings):
            break
        shuffle(order)
        while True:
            taken = Interruptions()
            values = [milliseconds(calls[name], device) for name in order]
            if not (patience and taken.many()):
                break
            patience -= 1
            if rounds.strict and not patience:
                raise ValueError(
                    f"{description}: in {repetitions} rounds other processes took CPUs away from "
                    "this one, so that its times would not be this machine's; stop them, or give "
                    "hardware.noise=null"
                )
        for name, value in zip(order, values, strict=True):
            timings[name].values.append(value)
    if device.type == "cpu" and not patience:
        log.warning("%s: other processes take CPUs away from this one; stop them", description)
    return timings


def in_turns(
    calls: tuple[Callable[[], object], Callable[[], object]],
    device: torch.device,
    repetitions: int,
    doubt: float,
    description: str,
) -> tuple[Timing, Timing]:
    """Time two calls in pairs until the ratio is known to a share `doubt` of it, or time is up."""

    def enough(timings: dict[str, Timing]) -> bool:
        middle, error = speedup(timings["before"], timings["after"])
        return error < doubt * middle

    named: dict[str, Callable[[], object]] = {"before": calls[0], "after": calls[1]}
    taken = interleaved(named, device, Rounds(repetitions, enough), description)
    return taken["before"], taken["after"]


def _rounds(least: int, seconds: float) -> Iterator[int]:
    """Count to `least`, and on until so many seconds are over."""
    start, index = time.perf_counter(), 0
    while index < least or time.perf_counter() - start < seconds:
        yield index
        index += 1


def _counts(
    calls: Mapping[Name, Callable[[], object]], device: torch.device, most: int
) -> dict[Name, int]:
    """Return how often each call comes in a round: the mean time over its own, 1 to `most`."""
    if most == 1:
        return dict.fromkeys(calls, 1)
    took = {name: milliseconds(call, device) for name, call in calls.items()}
    mean = sum(took.values()) / len(took)
    return {name: max(1, min(most, round(mean / max(ms, 1e-6)))) for name, ms in took.items()}
