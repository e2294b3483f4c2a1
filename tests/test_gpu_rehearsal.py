"""`make gpu ARGS=--rehearse`: the script for a machine with a GPU, on small shapes."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.jobs import ROOT

PARTS = ("tables-llama2-7b", "slimgpt-llama2-7b", "ziplm-llama2-7b")


@pytest.mark.job
def test_the_parts_of_a_gpu_day_run_on_small_shapes(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--out", str(tmp_path)]
    where = os.environ | {"PYTHONPATH": str(ROOT), "PRUNING_CACHE": str(tmp_path / "own")}
    done = subprocess.run(
        [*command, "--parts", ",".join(PARTS)],
        cwd=ROOT,
        env=where,
        capture_output=True,
        text=True,
        timeout=300,
    )
    logs = "".join(path.read_text()[-500:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parts"] == dict.fromkeys(PARTS, "done"), logs
    (table,) = tmp_path.glob("llama2-7b-*-prefill-*.json")
    assert json.loads(table.read_text())["dense"] > 0
    ziplm = json.loads((tmp_path / "ziplm-llama2-7b.json").read_text())
    stages = {"load", "profile", "calibrate", "levels", "folds", "search", "prune", "measure"}
    assert stages == ziplm["seconds"].keys() == ziplm["peak_gib"].keys()
    assert 0 < ziplm["parameters"] < 1
