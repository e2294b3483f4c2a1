"""Old names of fields: an override of one ends in a line with the new one, old results are read."""

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from pruning.cli import main
from pruning.composition import SCHEMAS, compose, refuse_renamed
from pruning.evaluation.parts import QABenchmark
from pruning.job.launch import shell
from pruning.renamed import RENAMED, REPLACED, today

CHANGES = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
KINDS = {group: [*kinds.values()] for group, kinds in SCHEMAS.items()}
KINDS["suite.questions.*"] = [QABenchmark]


def is_field(path: str) -> bool:
    group, _, name = path.rpartition(".")
    return any(name in {field.name for field in fields(kind)} for kind in KINDS[group])


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_no_field_and_the_new_one_is(old, new):
    assert not is_field(old)
    assert is_field(new)
    assert old.rpartition(".")[0] == new.rpartition(".")[0]
    assert f"`{old}` | `{new}`" in CHANGES


@pytest.mark.parametrize("sign", ["", "+", "++", "~"])
@pytest.mark.parametrize("old", [*RENAMED, *REPLACED])
def test_an_old_override_ends_in_a_line_that_names_the_new_one(old, sign):
    path = old.replace("*", "mine")
    override = f"{sign}{path}" + ("" if sign == "~" else "=1,2")
    new = (RENAMED | REPLACED)[old].replace("*", "mine")
    line = f"^{re.escape(override)}: this option is now {re.escape(new)}$"
    with pytest.raises(ValueError, match=line):
        compose(["speedup=1.5", override])


def test_what_takes_the_place_of_an_option_of_another_group_composes():
    for old, new in REPLACED.items():
        assert not is_field(old)
        compose([new])


@pytest.mark.parametrize("arguments", [[], ["-m"]])
def test_launch_says_it_in_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch.py", *arguments, "recovery.rate=1e-5"])
    assert shell() == 1
    line = "error: recovery.rate=1e-5: this option is now recovery.learning_rate\n"
    assert capsys.readouterr().err == line


def test_so_does_the_command_line(capsys):
    assert main(["profile", "hardware.of=flop"]) == 1
    assert capsys.readouterr().err.endswith(
        "hardware.of=flop: this option is now hardware.counts\n"
    )


def test_so_does_a_yaml_of_the_user(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /recovery: distill]\nrecovery: {rate: 1e-5}\n"
    )
    given = ["--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job"]
    monkeypatch.setattr(sys, "argv", ["launch.py", *given])
    assert shell() == 1
    line = "error: recovery.rate: this option is now recovery.learning_rate\n"
    assert capsys.readouterr().err == line


def test_other_options_and_those_of_classes_from_elsewhere_pass(monkeypatch):
    passing = [
        "recovery.steps=1",
        "hardware.batch=2",
        "recovery=distill",
        "-m",
        "hardware.launch=0",
    ]
    refuse_renamed(passing)
    monkeypatch.setattr(ConfigStore.instance(), "repo", {"method": {}})
    ConfigStore.instance().store(group="method", name="mine", node={"rate": 1.0})
    refuse_renamed(["method.rate=2"])
    with pytest.raises(ValueError, match=r"now method\.max_grad_norm"):
        refuse_renamed(["method.clip=2"])


def test_other_paths_have_no_other_name():
    assert today("recovery.steps") is None
    assert today("suite.questions.squad.sequence") == "suite.questions.squad.max_length"
