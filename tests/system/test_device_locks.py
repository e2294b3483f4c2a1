"""Jobs at the same time: some compute, one times, none of them waits for ever."""

import multiprocessing
import os
import queue
import tempfile
import time
from pathlib import Path

import pytest
import torch

from pruning.system.cache import Cache
from pruning.system.device_locks import claim_gpu, computing_on, exclusive, free, locked, rest

pytestmark = pytest.mark.job

CPU = torch.device("cpu")
fork = multiprocessing.get_context("fork")


def _computes(path: Path, seconds: float) -> None:
    """Compute in small steps, and note when."""
    with computing_on(CPU), path.open("a") as file:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.monotonic()
            time.sleep(0.01)
            file.write(f"compute {start} {time.monotonic()}\n")
            file.flush()
            rest()


def _times(path: Path, count: int) -> None:
    with computing_on(CPU), path.open("a") as file:
        for _ in range(count):
            with exclusive(CPU):
                start = time.monotonic()
                time.sleep(0.05)
                file.write(f"time {start} {time.monotonic()}\n")
            time.sleep(0.02)


def spans(paths: list[Path]) -> list[tuple[str, float, float, Path]]:
    found = [(*line.split(), path) for path in paths for line in path.read_text().splitlines()]
    return [(what, float(start), float(end), path) for what, start, end, path in found]


def test_nothing_is_computed_while_something_is_timed(tmp_path):
    paths = [tmp_path / f"{index}.txt" for index in range(4)]
    jobs = [fork.Process(target=_computes, args=(paths[i], 1.5)) for i in range(2)]
    jobs += [fork.Process(target=_times, args=(paths[i], 5)) for i in (2, 3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(20)
        assert job.exitcode == 0
    found = spans(paths)
    timed = [span for span in found if span[0] == "time"]
    assert len(timed) == 10
    assert sum(what == "compute" for what, *_ in found) > 20
    for _, start, end, path in timed:
        for _, begin, finish, other in found:
            assert other == path or finish <= start or begin >= end
    # they waited for a step, not for the end of what is computed
    assert sum(end for _, _, end, _ in timed) / 10 < max(end for *_, end, _ in found) - 0.2


def _builds(root: Path, log: Path) -> None:
    def build(directory: Path) -> None:
        with log.open("a") as file:
            file.write("built\n")
        for _ in range(20):
            time.sleep(0.01)
            rest()
        with exclusive(CPU):  # as a profile does
            (directory / "content").write_text("42")

    with computing_on(CPU):
        assert (Cache(root).stage("stage", {"a": 1}, build) / "content").read_text() == "42"


def test_a_stage_is_built_once_by_jobs_that_also_take_turns(tmp_path):
    """Waiting for a stage, a job does not keep the one that builds it from timing."""
    where = (tmp_path / "cache", tmp_path / "log")
    jobs = [fork.Process(target=_builds, args=where) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(20)
        assert job.exitcode == 0
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_job_that_died_leaves_no_lock(tmp_path):
    job = fork.Process(target=_computes, args=(tmp_path / "log", 60.0))
    job.start()
    while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text():
        time.sleep(0.01)
    job.kill()
    job.join()
    with exclusive(CPU), locked(tmp_path / "lock"):
        pass


def test_a_lock_that_is_held_is_not_free(tmp_path):
    with locked(tmp_path / "lock"), free(tmp_path / "lock") as is_free:
        assert not is_free
    with free(tmp_path / "lock") as is_free:
        assert is_free


def test_jobs_that_see_different_gpus_do_not_wait_for_one_another(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with exclusive(torch.device("cuda:0")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        with exclusive(torch.device("cuda:0")):
            pass


def _works(jobs: int, told, end) -> None:
    """Stand for a worker of a launcher: job after job, and then no longer there."""
    claim_gpu.cache_clear()
    for _ in range(jobs):
        told.put((os.getpid(), claim_gpu(2)))
    end.wait(20)


@pytest.mark.parametrize(("visible", "names"), [(None, {"0", "1"}), ("6, 3,5", {"6", "3"})])
def test_a_worker_keeps_its_gpu_and_shares_it_with_nobody(monkeypatch, tmp_path, visible, names):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    told, ends = fork.Queue(), [fork.Event() for _ in range(3)]
    workers = [fork.Process(target=_works, args=(3, told, end)) for end in ends]
    had: dict[int, list[str]] = {}
    for worker in workers[:2]:
        worker.start()
        had[worker.pid] = [told.get(timeout=20)[1] for _ in range(3)]
    workers[2].start()
    with pytest.raises(queue.Empty):
        told.get(timeout=0.5)  # it waits
    ends[0].set()
    had[workers[2].pid] = [told.get(timeout=20)[1] for _ in range(3)]
    first, second, third = (set(had[worker.pid]) for worker in workers)
    assert first | second == names
    assert first == third
    assert all(len(of) == 1 for of in (first, second))
    for end, worker in zip(ends, workers, strict=True):
        end.set()
        worker.join(20)
        assert worker.exitcode == 0


@pytest.mark.parametrize("count", [-1, 0, 2])
def test_jobs_are_a_number_of_gpus(monkeypatch, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    claim_gpu.cache_clear()
    with pytest.raises(ValueError, match=rf"^hydra\.launcher\.n_jobs={count} must be .* the 1 of"):
        claim_gpu(count)


def _holds(path: Path, seconds: float) -> None:
    with locked(path):
        path.with_name("held").touch()
        time.sleep(seconds)


def test_who_waited_says_for_how_long(tmp_path, caplog):
    caplog.set_level("INFO")
    job = fork.Process(target=_holds, args=(tmp_path / "entry.lock", 1.5))
    job.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with locked(tmp_path / "entry.lock"):
        pass
    job.join()
    waited, went_on = [record.getMessage() for record in caplog.records]
    assert waited == f"waiting for another job, which works at {tmp_path}/entry"
    assert went_on.startswith("going on, after a wait of ")
