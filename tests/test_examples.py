"""The page on Python and the examples run as they are printed, on a tiny model."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
from transformers import LlamaConfig

import pruning
from pruning import Calibration, Text, prune
from pruning.latency.cost_models import Counted
from tests.helpers.families import GATED, llama, random_model
from tests.helpers.tiny import word_tokenizer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()


@pytest.fixture
def text(tmp_path):
    """Return a path of words that the tiny tokenizer knows."""
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{index * index % 125}" for index in range(3000)))
    return path


@pytest.mark.job
def test_the_blocks_of_the_page_run_in_their_order(text, tmp_path, monkeypatch):
    small = {
        "calibration": Calibration(text=Text(str(text)), tokens=1024, sequence_length=32),
        "search": pruning.Calibrated(tokens=64, sequence_length=[32]),
        "hardware": pruning.Local(sequence_length=64, repetitions=3, tolerance=0.9, noise=None),
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pruning.prune", lambda *a, **k: prune(*a, **{**small, **k}), raising=False)
    jaxtyping.config.update("jaxtyping_disable", True)
    wide = LlamaConfig(**GATED | {"intermediate_size": 1024}, max_position_embeddings=300)
    loaded = random_model(wide), word_tokenizer()
    monkeypatch.setattr("pruning.load", lambda name: loaded, raising=False)
    names: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    try:
        for block in blocks:
            exec(block, names)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert set(names["table"].columns) >= {"name", "target", "measured", "seconds"}


def test_every_choice_of_the_page_is_one():
    from pruning.api import Choices

    table = PAGE[PAGE.index("| choice") : PAGE.index("```python\nfrom pruning import Calibrated")]
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row[:22])}
    assert named == set(Choices.__annotations__)
    for name in set(re.findall(r"([A-Z]\w+)\(", table)):
        assert hasattr(pruning, name)


@pytest.mark.job
def test_the_script_prunes_a_toy(tmp_path, monkeypatch):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "prune_from_python.py", "tiny", "out"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PRUNING_CACHE": str(tmp_path / "cache"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^measured \d\.\d\dx, target 1\.25x$", done.stdout, re.MULTILINE)
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


@pytest.mark.job
def test_the_tiny_model_of_the_quickstart_is_pruned_as_it_says(tmp_path):
    page = (ROOT / "docs" / "quickstart.md").read_text().replace("\\\n", "")
    section = page[page.index("## A tiny model to try commands on") : page.index("## One number")]
    commands = re.findall(r"^    python (.+)", section, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        script, *arguments = shlex.split(command)
        done = subprocess.run(
            [sys.executable, ROOT / script, *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PRUNING_CACHE": str(tmp_path / "cache"), "PATH": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    (model,) = (tmp_path / "outputs" / "default").glob("tiny-*/model/model.safetensors")
    assert str(model.parent) in done.stdout


@pytest.mark.job
def test_a_method_outside_of_the_package(text, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "custom_method")
    from largest import Largest

    choices = {
        "hardware": pruning.Proxy(counts=Counted.parameters, sequence_length=16),
        "calibration": Calibration(text=Text(str(text)), tokens=1024, sequence_length=32),
        "search": pruning.Calibrated(tokens=64, sequence_length=[32]),
        "cache": tmp_path / "cache",
    }
    pruned = prune(llama(), word_tokenizer(), 1.2, method=Largest(power=2.0), **choices)
    assert pruned.result.config["method"] == {"name": "largest", "power": 2.0}
    with pytest.raises(ValueError, match=r"^method\.power=-1\.0 must be above 0"):
        Largest(power=-1.0)

    options = ["method=largest", "method.power=2", "suite=none", "--cfg", "job", "-p", "method"]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "custom_method" / "launch.py", *options],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[1:] == ["name: largest", "power: 2.0", ""], done.stderr[-2000:]
