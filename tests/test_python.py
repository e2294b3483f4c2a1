"""The Python way in: what it imports, what it returns, and that it leaves the model alone."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pandas
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

import pruning
from pruning import (
    Calibrated,
    Calibration,
    Dense,
    Local,
    Perplexity,
    Proxy,
    Random,
    SlimGPT,
    Suite,
    Text,
    ZipLM,
    load_results,
    profile,
    prune,
)
from pruning.composition import compose
from pruning.experiment import run_name
from pruning.models.source import fingerprint
from pruning.results.result import read
from tests.helpers.families import llama
from tests.helpers.tiny import word_tokenizer

HERE = {"sequence_length": 16, "alignment": 16, "repetitions": 3, "tolerance": 0.9, "noise": None}


@pytest.fixture(autouse=True)
def no_type_checks():
    """Let options be given as users may: the type checks of the tests know no names of enums."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def choices(tmp_path):
    """Return choices under which a job takes a second."""
    draw = torch.Generator().manual_seed(2)
    words = torch.randint(125, (3000,), generator=draw).tolist()
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{word}" for word in words))
    return {
        "hardware": Proxy(name="params", counts="parameters", sequence_length=16, alignment=16),
        "calibration": Calibration(text=Text(str(text)), tokens=1024, sequence_length=32),
        "search": Calibrated(tokens=64, sequence_length=[32]),
        "cache": tmp_path / "cache",
    }


@pytest.mark.job
def test_importing_it_is_cheap():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, time; start = time.process_time(); from pruning import prune; "
            "print(time.process_time() - start, *sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert float(said[0]) < 0.3
    assert not {"torch", "transformers", "pandas", "hydra"} & set(said)


def test_every_name_of_the_package_is_there():
    assert sorted(pruning.__all__) == sorted(pruning._HOME)
    typed = ast.parse(Path(pruning.__file__).read_text())
    imported = {
        alias.name: node.module
        for node in ast.walk(typed)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: imported.get(name) for name in pruning.__all__} == pruning._HOME
    for name in pruning.__all__:
        assert getattr(pruning, name).__name__ == name
    with pytest.raises(AttributeError, match=r"^module 'pruning' has no attribute 'Ziplm'$"):
        _ = pruning.Ziplm


@pytest.mark.job
def test_a_model_is_pruned_and_left_as_it_was(choices, tmp_path):
    model, tokenizer = llama(), word_tokenizer()
    before = fingerprint(model)
    model.train()
    model.model.layers[0].eval()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    suite = Suite("mine", perplexity=Perplexity(choices["calibration"].text, [32], tokens=128))
    pruned = prune(model, tokenizer, speedup=1.3, suite=suite, **choices)
    assert torch.equal(torch.rand(2), expected)
    assert fingerprint(model) == before
    assert model.training
    assert not model.model.layers[0].training
    assert pruned.speedup.target == 1.3
    assert pruned.speedup.measured is None  # parameters are counted
    assert pruned.speedup.predicted >= 1.3
    left = sum(parameter.numel() for parameter in pruned.model.parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert pruned.result.params.pruned == left < whole / 1.2
    assert [block.block for block in pruned.allocation] == [0, 1, 2]
    assert set(pruned.result.evaluation.pruned) == {"mine/text/token_perplexity_32"}
    for mine, other in zip(pruned.model.parameters(), model.parameters(), strict=False):
        assert mine.data_ptr() != other.data_ptr()

    out = pruned.save(tmp_path / "out" / "job")
    again = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    ids = torch.randint(3, 128, (2, 8))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, pruned.model(ids).logits)
    assert read(out / "result.json") == pruned.result
    assert json.loads((out / "allocation.json").read_text())
    card = (out / "model" / "README.md").read_text()
    assert "prune(model, tokenizer, speedup=1.3, suite=Suite(name='mine'" in card

    table = load_results(tmp_path / "out")
    assert isinstance(table, pandas.DataFrame)
    row = table.iloc[0]
    assert (row["method"], row["target"], row["parameters"]) == ("ziplm", 1.3, left)
    assert row["pruned/mine/text/token_perplexity_32"] == next(
        iter(pruned.result.evaluation.pruned.values())
    )
    with pytest.raises(ValueError, match=r"holds no result\.json"):
        load_results(tmp_path / "cache")


@pytest.mark.job
def test_speed_is_measured_here(choices):
    choices["hardware"] = Local(**HERE)
    pruned = prune(llama(), word_tokenizer(), speedup=1.05, **choices)
    assert pruned.speedup.measured > 0
    table = profile(llama(), hardware=Local(**HERE), cache=choices["cache"])
    assert table.dense > 0
    assert "ffn" in table.parts


@pytest.mark.job
def test_a_ratio_a_name_and_the_dense_model(choices):
    model, tokenizer = llama(), word_tokenizer()
    del choices["search"]
    here = choices | {"hardware": Local(**HERE)}
    ratio = prune(model, tokenizer, method=SlimGPT(ratio=0.3), **here)
    assert ratio.speedup.target is None
    assert ratio.result.config["search"]["name"] == "schedule"
    named = prune(model, tokenizer, 1.2, method="depth", **choices)
    assert named.result.config["search"]["name"] == "none"
    assert any(block.ffn == block.kv_heads == 0 for block in named.allocation)
    dense = prune(model, tokenizer, 1, method=Dense(), **choices)
    assert dense.result.params.ratio == 1


def test_choices_that_cannot_be_used_say_so(choices):
    model, tokenizer = llama(), word_tokenizer()
    with pytest.raises(ValueError, match=r"^method\.ffn_score='best' cannot be used: .*obs, wanda"):
        ZipLM(ffn_score="best")
    with pytest.raises(ValueError, match=r"^hardware\.sequence_length='long' cannot be used"):
        Local(sequence_length="long")
    with pytest.raises(ValueError, match=r"^speedup=null needs a ratio"):
        prune(model, tokenizer, **choices)
    with pytest.raises(ValueError, match=r"^speedup=0\.5 must be a number of at least 1"):
        prune(model, tokenizer, 0.5, **choices)
    with pytest.raises(ValueError, match=r"^hardware\.counts needs a value"):
        prune(model, tokenizer, 1.5, **choices | {"hardware": Proxy()})
    with pytest.raises(TypeError, match=r"^no such choice: methods; there are method, hardware"):
        prune(model, tokenizer, 1.5, methods="ziplm")


def test_python_and_yaml_make_the_same_objects():
    assert ZipLM(ffn_score="obs") == compose(["method.ffn_score=obs"]).method
    assert Random(seed=0) == compose(["method=random"]).method
    assert Local() == compose([]).hardware
    experiment = compose(["speedup=2", "method=slimgpt", "recovery=gradual"])
    assert run_name(OmegaConf.structured(experiment)) == run_name(
        OmegaConf.structured(replace(experiment, study="other"))
    )
