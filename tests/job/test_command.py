"""The command line that a result says it is from."""

import sys

import pytest

from pruning.composition import compose
from pruning.job.launch import command

SCRIPTS = {
    "launch.py": "python launch.py",
    "examples/custom_method/launch.py": "python examples/custom_method/launch.py",
    "{here}/mine/launch.py": "python mine/launch.py",
    "/home/somebody/launch.py": "python launch.py",
    "/home/somebody/.venv/bin/pruning-launch": "pruning-launch",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_is_the_one_that_was_called_and_names_no_home(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script.format(here=tmp_path)])
    said = command(compose(["speedup=1.5"]), ["speedup=1.5", "a=b c"], 1.5)
    assert said == f"{SCRIPTS[script]} speedup=1.5 'a=b c'"
