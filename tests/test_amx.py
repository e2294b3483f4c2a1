"""What only a processor with AMX can show: the default job in bfloat16 beside float32."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
AMX = torch.cpu.get_capabilities().get("amx_bf16", False)


@pytest.mark.slow
@pytest.mark.skipif(not AMX, reason="this processor has no AMX (amx_bf16)")
def test_the_default_job_in_bfloat16_takes_half_of_the_time_at_the_same_quality(tmp_path):
    seconds, perplexity = {}, {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        given = [f"model.dtype={dtype}", "speedup=1.5", "tracker=none", f"cache={tmp_path}/cache"]
        command = [sys.executable, "launch.py", *given, f"hydra.run.dir={out}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        result = json.loads((out / "result.json").read_text())
        assert result["speedup"]["measured"] == pytest.approx(1.5, rel=0.02)
        seconds[dtype] = result["seconds"]["total"] - result["seconds"]["load"]  # a download
        metrics = result["evaluation"]["pruned"]
        perplexity[dtype] = metrics["quick/text/token_perplexity_512"]
    print(seconds, perplexity)
    assert seconds["bfloat16"] <= 0.5 * seconds["float32"]
    assert perplexity["bfloat16"] <= 1.03 * perplexity["float32"]
