"""One job on real weights, from the wheel to lm-eval's command line on the checkpoint."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[1]
TARGET = 1.25
SMALL = [  # the default job with less of everything: a minute or two on two cores
    "tracker=none",
    "calibration.tokens=2560",
    "calibration.sequence=256",
    "calibration.batch=2",
    "hardware.repetitions=8",
    "hardware.alignment=128",
    "suite.tasks={}",
    "suite.perplexity.tokens=1024",
]


def run(out: Path, *overrides: str) -> dict:
    """Run a job in a directory of its own; the wheels come from the user's cache if there."""
    command = [sys.executable, "launch.py", *SMALL, *overrides, f"hydra.run.dir={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the main job."""
    out = tmp_path_factory.mktemp("real") / "job"
    run(out, f"speedup={TARGET}", "search.tokens=128")
    return out


def test_speed_and_quality(job: Path) -> None:
    result = json.loads((job / "result.json").read_text())
    # the job accepts 2 %; it may have stopped at the last round on a machine that is busy
    assert result["speedup"]["measured"] == pytest.approx(TARGET, rel=0.08)
    dense, pruned = (
        result["evaluation"][which]["quick/text/token_perplexity_512"]
        for which in ("dense", "pruned")
    )
    assert 1 < dense < pruned < 3 * dense
    assert result["params"]["pruned"] < result["params"]["dense"] == 134_515_008


@pytest.mark.slow
def test_slimgpt_cuts_a_fifth_of_every_blocks_parameters_by_its_schedule(tmp_path: Path) -> None:
    out = tmp_path / "ratio" / "job"
    result = run(out, "method=slimgpt", "method.ratio=0.2", "speedup=null")
    form = [0.0625 + 0.1875 * math.log(i + 1) / math.log(30) for i in range(30)]
    ratios = [0.2 * 30 * x / sum(form) for x in form]
    assert sum(ratios) / 30 == pytest.approx(0.2)
    shares = {(g, h): g * (h + 1) / 12 for g in (1, 2, 3) for h in (1, 2, 3)}  # k, v; q, o
    removed = 0
    for block, ratio in zip(result["allocation"], ratios, strict=True):
        assert abs(block["ffn"] - 1536 * (1 - ratio)) <= 0.5
        left = block["kv_heads"], block["query_heads"] // block["kv_heads"]
        gaps = {shape: abs(share - (1 - ratio)) for shape, share in shares.items()}
        assert gaps[left] == pytest.approx(min(gaps.values()))
        removed += 3 * 576 * (1536 - block["ffn"])
        removed += 2 * 576 * 64 * (9 - block["query_heads"] + 3 - block["kv_heads"])
    params = result["params"]
    assert params["dense"] - params["pruned"] == removed
    prunable = 30 * (3 * 576 * 1536 + 2 * 576 * 64 * 12)
    print(f"removed {removed / prunable:.4f} of the prunable parameters")
    # attention has a quarter of the parameters, and at worst misses by half of its widest gap, 1/4
    assert removed / prunable == pytest.approx(0.2, abs=1 / 4 * 1 / 8)
    model = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == params["pruned"]


def test_lm_eval_command_line(job: Path, tmp_path: Path) -> None:
    """The command line that everyone uses loads the checkpoint and reports on it."""
    documents = [
        {
            "id": str(i),
            "question": f"Which number is larger than {i}?",
            "choices": {"text": [str(i + 1), str(max(i - 1, 0))], "label": ["A", "B"]},
            "answerKey": "A",
        }
        for i in range(1, 7)
    ]
    (tmp_path / "documents.jsonl").write_text("\n".join(json.dumps(d) for d in documents))
    import lm_eval

    task = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / "arc" / "arc_easy.yaml"),
        "task": "larger",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "documents.jsonl")}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    (tmp_path / "larger.yaml").write_text(yaml.safe_dump(task))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={job / 'model'},trust_remote_code=True"]
    command += ["--tasks", "larger", "--include_path", str(tmp_path), "--batch_size", "4"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"\|larger\|.*\|acc\b", done.stdout.replace(" ", "")), done.stdout
