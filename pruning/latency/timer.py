"""Timing calls: interleaved, medians kept with their spread."""

import logging
import random
import resource
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

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
    """How often the system has taken a CPU away from what is timed, since this was made.

    That is this process with those that it has started: an engine may run in one. On two quiet
    cores that was 17 times per second and thread, and 80 to 100 times with another busy process,
    when two threads ran three times slower.
    """

    FEW, PER_SECOND = 5, 40  # of each thread

    def __init__(self) -> None:
        self.start, self.counts = time.perf_counter(), self._counts()

    def many(self) -> bool:
        """Tell whether these were more than on a quiet machine."""
        seconds = time.perf_counter() - self.start
        most = self.FEW + self.PER_SECOND * seconds * torch.get_num_threads()
        now = self._counts()
        return sum(max(0, now[each] - self.counts.get(each, 0)) for each in now) > most

    def _counts(self) -> dict[str, int]:
        mine = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        return {"self": mine} | {child: _of_process(child) for child in _children()}


def _children() -> list[str]:
    """List the processes that this one has started and that run; none where no file says so."""
    listed = Path("/proc/self/task").glob("*/children")
    return [child for file in listed for child in file.read_text().split()]


def _of_process(process: str) -> int:
    """Count how often all threads of a process have lost their CPU; 0 if it has ended.

    Less how often they woke: some engines have threads that wake all the time, and take a CPU from
    one another. vLLM's lost it 220 times per second on a quiet machine, and woke 1,100 times.
    """
    count = 0
    with suppress(OSError):
        for file in Path(f"/proc/{process}/task").glob("*/status"):
            _, told, switches = file.read_text().partition("\nvoluntary_ctxt_switches:")
            slept, _, lost = switches.partition("nonvoluntary_ctxt_switches:")
            count += int(lost) - int(slept) if told else 0
    return count


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
