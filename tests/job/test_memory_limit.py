"""Jobs within a limit of memory that the system enforces, against jobs without one."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.jobs import ROOT

LIMIT = 7e8  # bytes; torch and transformers take 0.5e9, two models 0.7e9


def run(out, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark on a model of 0.35 GB."""
    command = [sys.executable, "benchmarks/streaming.py", "--shape", "small", "--out", str(out)]
    where = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given = {"cwd": ROOT, "env": where, "capture_output": True, "text": True}
    return subprocess.run([*command, f"--limit={LIMIT}", *words], timeout=900, **given)


@pytest.mark.job
def test_a_streamed_job_stays_within_its_limit_and_ends_as_a_resident_one(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    print(said)
    for method in ("ziplm", "slimgpt"):
        assert said[method] == {"same_allocation": True, "largest_difference": 0.0}
        assert 1e9 * said[f"{method}-streamed"]["peak_gb"] < LIMIT
        assert 1e9 * said[f"{method}-resident"]["peak_gb"] > LIMIT
    other = tmp_path / "other"  # not where a job is done already
    too_little = run(other, "--methods=ziplm", "--alone", "calibration.tokens=200000")
    assert too_little.returncode
    assert "it takes about" in too_little.stderr
    assert "GB are there: lower calibration.tokens" in too_little.stderr
