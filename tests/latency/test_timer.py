import os
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE, Popen

import psutil
import pytest
import torch

from pruning.latency import timer
from pruning.latency.timer import Rounds, Timing, interleaved

CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch):
    """Make calls that take known times on a timer of our own, and note their order."""
    now, order = [0], []
    monkeypatch.setattr(timer.time, "perf_counter_ns", lambda: now[0])

    def taking(name: str, ms: float):
        def call():
            order.append(name)
            now[0] += int(ms * (10 if order.count(name) == 1 else 1) * 1e6)  # a cold start

        return call

    return {"a": taking("a", 3.0), "b": taking("b", 5.0), "c": taking("c", 1.0)}, order


def test_every_call_once_a_round_in_new_orders(calls):
    of, order = calls
    found = interleaved(of, CPU, Rounds(20), "test")
    assert list(found) == ["a", "b", "c"]
    assert [set(timing.values) for timing in found.values()] == [{3.0}, {5.0}, {1.0}]  # no warm-up
    assert all(len(timing.values) == 20 for timing in found.values())
    rounds = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(rounds) == 21
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 3


def test_what_is_fast_is_timed_more_often(calls):
    """Calls of 3, 5 and 1 ms: the mean of 3 is once, once and three times their own."""
    of, order = calls
    found = interleaved(of, CPU, Rounds(4, most=5), "test")
    assert {name: len(timing.values) for name, timing in found.items()} == {"a": 4, "b": 4, "c": 12}
    assert set(found["c"].values) == {1.0}
    rounds = [order[i : i + 5] for i in range(6, len(order), 5)]  # behind warm-up and a first look
    assert all(sorted(r) == ["a", "b", "c", "c", "c"] for r in rounds)


@pytest.mark.parametrize(("wanted", "rounds"), [(1, 6), (8, 8), (100, 12)])
def test_more_rounds_until_enough_and_at_most_twice_as_many(calls, monkeypatch, wanted, rounds):
    monkeypatch.setattr(timer, "SECONDS", 0.0)
    found = interleaved(calls[0], CPU, Rounds(6, lambda f: len(f["a"].values) >= wanted), "test")
    assert all(len(timing.values) == rounds for timing in found.values())


def test_calls_that_take_no_time_go_on_for_seconds(calls, monkeypatch):
    monkeypatch.setattr(timer, "SECONDS", 0.3)
    start = time.perf_counter()
    found = interleaved(calls[0], CPU, Rounds(6, lambda f: False), "test")
    assert 0.3 < time.perf_counter() - start < 3
    assert len(found["a"].values) > 100
    assert len(interleaved(calls[0], CPU, Rounds(6, lambda f: True), "test")["a"].values) == 6


@pytest.mark.parametrize("disturbed", [3, 100])
def test_rounds_in_which_others_took_a_cpu_are_timed_again(calls, monkeypatch, caplog, disturbed):
    of, order = calls
    left = [disturbed]

    def many(self) -> bool:
        left[0] -= 1
        return left[0] >= 0

    monkeypatch.setattr(timer.Interruptions, "many", many)
    found = interleaved(of, CPU, Rounds(6), "test")
    assert all(len(timing.values) == 6 for timing in found.values())
    again = min(disturbed, 6)  # then they count
    assert len(order) == 3 * (1 + 6 + again)
    assert ("other processes take CPUs away" in caplog.text) == (disturbed > 6)


@pytest.mark.parametrize(("lost", "many"), [(50, False), (200, True)])
def test_lost_cpus_are_counted_per_second_and_thread(monkeypatch, lost, many):
    now, taken = [0.0], [7]
    monkeypatch.setattr(timer.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timer.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(timer, "_lost", lambda: taken[0])
    monkeypatch.setattr(timer, "_others", lambda: None)
    monkeypatch.setattr(timer, "_waited", dict)
    interruptions = timer.Interruptions()
    now[0], taken[0] = 1.0, 7 + lost
    assert interruptions.many() == many


@pytest.mark.parametrize(
    ("waits", "many"), [({"1": 0.05, "2": 0.04}, False), ({"1": 0.0, "2": 0.4}, True)]
)
def test_the_thread_that_waited_longest_decides(monkeypatch, waits, many):
    now, waited = [0.0], {"1": 3.0, "2": 2.0, "ends": 9.0}
    monkeypatch.setattr(timer.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timer, "_others", lambda: None)
    monkeypatch.setattr(timer, "_waited", lambda: waited)
    interruptions = timer.Interruptions()
    now[0], waited = 1.0, {"1": 3.0 + waits["1"], "2": 2.0 + waits["2"], "begins": 7.0}
    assert interruptions.many() == many


@pytest.mark.job
@pytest.mark.skipif(not timer._waited(), reason="the system does not say how long threads wait")
@pytest.mark.parametrize("whose", ["a child's", "another's"])
def test_threads_that_wait_for_a_cpu_are_noticed(whose):
    """Two processes that never rest share one CPU, whoever started the other one."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})  # of this thread, and of children
    command = BUSY if whose == "a child's" else PARENT
    busy = Popen([sys.executable, "-c", command], stdin=PIPE, stdout=PIPE)
    inner = None
    try:
        told = busy.stdout.readline().strip()
        inner = int(told) if told else None
        interruptions, end = timer.Interruptions(), time.perf_counter() + 0.5
        while time.perf_counter() < end:
            pass
        own = str(threading.get_native_id())
        assert timer._waited()[own] - interruptions.waited[own] > 0.1  # about half of the time
        assert interruptions.many()
    finally:
        os.sched_setaffinity(0, allowed)
        if inner is not None:
            os.kill(inner, 9)
        busy.kill()
        busy.communicate()


BUSY = "import time\nprint(flush=True)\nend = time.time() + 30\nwhile time.time() < end: pass"


def idle() -> float:
    """Return the seconds that CPUs had nothing to do."""
    times = psutil.cpu_times()
    return times.idle + times.iowait


PARENT = f"""
import os, subprocess, sys
inner = subprocess.Popen([sys.executable, "-c", {BUSY!r}])
print(inner.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system tells nothing")
@pytest.mark.parametrize("whose", ["the engine's", "another's"])
def test_cpu_time_of_others_is_told_from_that_of_an_engine(whose, monkeypatch):
    """A busy process is an engine of ours, or a child of it, which is none."""
    command = BUSY if whose == "the engine's" else PARENT
    engine = Popen([sys.executable, "-c", command], stdin=PIPE, stdout=PIPE)
    monkeypatch.setattr(timer, "running", lambda: [engine.pid])
    inner = None
    try:
        told = engine.stdout.readline().strip()
        inner = int(told) if told else None
        interruptions, start = timer.Interruptions(), idle()
        time.sleep(1.0)
        spent = psutil.cpu_count() * 1.0 - (idle() - start)  # CPU seconds of all
        others = timer._others() - interruptions.others
        if whose == "another's":
            assert interruptions.many()
            assert others == pytest.approx(spent, abs=0.3)
        else:
            assert others < spent - 0.3
    finally:
        if inner is not None:
            os.kill(inner, 9)
        engine.kill()
        engine.communicate()


def test_percentiles():
    timing = Timing([5.0, 1.0, 2.0, 4.0, 3.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0])
    assert (timing.p50, timing.p90) == (6.0, 10.0)
    assert timing.spread == pytest.approx(10 / 6)


def test_on_cuda_events_tell_the_time(monkeypatch):
    """Two events around each call, read only after the second one has happened."""
    now, events = [0.0], []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing
            self.at, self.happened = None, False
            events.append(self)

        def record(self) -> None:
            self.at = now[0]

        def synchronize(self) -> None:
            self.happened = True

        def elapsed_time(self, end: "Event") -> float:
            assert end.happened
            return end.at - self.at

    def taking(ms: float):
        def call():
            now[0] += ms

        return call

    monkeypatch.setattr(torch.cuda, "Event", Event)
    found = interleaved(
        {"a": taking(3.0), "b": taking(5.0)}, torch.device("cuda"), Rounds(4), "test"
    )
    assert {name: timing.values for name, timing in found.items()} == {
        "a": [3.0] * 4,
        "b": [5.0] * 4,
    }
    assert len(events) == 2 * 2 * 4  # none for the warm-up
