"""Sweeps: several jobs of one command, at the same time, killed, failing."""

import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pruning.composition import register
from tests.helpers.jobs import ROOT, Jobs
from tests.helpers.place import Place

pytestmark = pytest.mark.job

PROXY = (
    "hardware=params",
    "hardware.device=cpu",
    "hardware.alignment=128",
    "hardware.sequence_length=128",
)
TARGETS = "speedup=1.2,1.4"


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    server = Jobs(Place(tmp_path_factory.mktemp("sweep")).environment)
    yield server
    server.close()


def sweep(place: Place, *overrides: str, outputs: str = "outputs") -> list[str]:
    return ["-m", *place.arguments(*overrides, outputs=outputs), f"cache={place.cache}"]


def start(place: Place, arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "launch.py", *arguments],
        cwd=ROOT,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def computed(place: Place) -> Counter[str]:
    """Count how often each stage was computed, from the logs of all jobs."""
    logs = [path.read_text() for path in place.root.glob("outputs*/*/job.log")]
    return Counter(
        found for log in logs for found in re.findall(r"computed in [\d.]+ s, \S+/(\w+/\w+)", log)
    )


def content(place: Place, outputs: str) -> dict[str, dict]:
    """Return every result without what differs from run to run: times, memory, paths."""
    found = {}
    for path in (place.root / outputs).glob("*/result.json"):
        result = json.loads(path.read_text())
        for key in ("seconds", "memory", "environment", "command"):
            del result[key]
        for key in ("cache", "study"):
            del result["config"][key]
        found[path.parent.name] = result
    return found


def test_the_same_sweep_started_twice_computes_every_stage_once(place):
    arguments = sweep(place, "speedup=1.2,1.3")
    both = [start(place, arguments) for _ in range(2)]
    for process in both:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error[-3000:]
    assert len(place.results()) == 2
    times = computed(place)
    assert {name.split("/")[0] for name in times} >= {"profile", "moments", "levels", "evaluate"}
    assert set(times.values()) == {1}


@pytest.mark.slow
def test_joblib_gives_what_the_serial_sweep_gives(place, jobs):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra sweep")
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    arguments = sweep(place, *PROXY, TARGETS, *parallel, outputs="outputs_parallel")
    done = place.run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| 1.400x | ziplm |" in done.stdout  # the table of the study, by the parent
    times = computed(place)
    assert {name.split("/")[0] for name in times} >= {"moments", "levels", "sensitivities"}
    assert set(times.values()) == {1}
    done = jobs(*sweep(place, *PROXY, TARGETS), f"cache={place.root / 'other'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(place, "outputs") == content(place, "outputs_parallel")
    assert len(content(place, "outputs")) == 2


def test_the_launcher_of_gpus_gives_every_worker_one():
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra sweep")
    register()
    options = ["hydra/launcher=gpus", "hydra.launcher.n_jobs=3"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", options, return_hydra_config=True)
    assert config.hydra.launcher.n_jobs == 3
    assert "joblib" in config.hydra.launcher._target_
    given = OmegaConf.to_container(config.hydra.job.env_set, resolve=False)
    assert given == {"CUDA_VISIBLE_DEVICES": "${card:${hydra.launcher.n_jobs}}"}


def test_killed_ten_times_at_random_moments_a_sweep_completes(place, jobs):
    """Nothing that was finished is computed again, and no file is cut short."""
    arguments = sweep(place, *PROXY, "speedup=1.2,1.3,1.4")
    draw, finished, results = random.Random(0), {}, {}
    codes = []
    for _ in range(10):
        done = jobs(*arguments, kill_after=draw.uniform(0.2, 2.0))
        assert done.returncode in (-9, 0), done.stderr[-3000:]
        codes.append(done.returncode)
        now = place.entries()
        assert finished.items() <= now.items(), "a finished stage was built again"
        there = written(place)
        assert results.items() <= there.items(), "a finished job ran again"
        finished, results = now, there
    assert codes.count(-9) >= 3, codes
    done = jobs(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert finished.items() <= place.entries().items()
    assert results.items() <= written(place).items()
    assert [r["speedup"]["target"] for r in place.results()] == [1.2, 1.3, 1.4]
    assert set(computed(place).values()) == {1}
    logs = [path.read_text() for path in (place.root / "outputs").glob("*/job.log")]
    assert not any("damaged" in log or "cut short" in log for log in logs)
    assert not list(place.cache.glob("*/.*-*"))


def written(place: Place) -> dict[Path, int]:
    paths = (place.root / "outputs").glob("*/result.json")
    return {path: path.stat().st_mtime_ns for path in paths}


def test_a_failing_job_has_its_line_and_the_others_their_results(place, jobs):
    done = jobs(*sweep(place, *PROXY, "speedup=1.2,50,60"))
    assert done.returncode == 1
    assert [result["speedup"]["target"] for result in place.results()] == [1.2]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert [re.match(r"error: tiny-ziplm-params-(\d+)x-\w+: ", line)[1] for line in lines] == [
        *("50", "60")
    ]
    assert all("cannot be met" in line for line in lines)
    failed = [path.parent.name for path in (place.root / "outputs").glob("*/error.txt")]
    assert sorted(re.search(r"-(\d+)x-", name)[1] for name in failed) == ["50", "60"]
    assert "Traceback" in next((place.root / "outputs").glob("*/error.txt")).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "overrides"),
    [
        (
            "hydra_plugins.hydra_submitit_launcher",
            ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
        ),
        (
            "hydra_plugins.hydra_ray_launcher",
            ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
        ),
    ],
    ids=["submitit", "ray"],
)
def test_a_sweep_on_other_launchers(place, plugin, overrides):
    pytest.importorskip(plugin, reason="the extras sweep and ray")
    place.environment["TMPDIR"] = tempfile.mkdtemp(dir="/tmp")  # ray's sockets need a short path
    done = place.run(*sweep(place, *PROXY, "speedup=1.2,1.4,50", *overrides))
    assert done.returncode == 1
    assert [result["speedup"]["target"] for result in place.results()] == [1.2, 1.4]
    assert set(computed(place).values()) == {1}
    assert re.search(r"^error: tiny-ziplm-params-50x-\w+: speedup=50 cannot", done.stderr, re.M)
