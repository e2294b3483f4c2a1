"""The command line: help at once, mistakes in one line."""

import subprocess
import sys

import pytest

from pruning import cli

COMMANDS = ("report", "profile", "cache", "sync", "dashboard", "reproduce")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert cli.main(["--help"]) == 0
    assert f"  {command} " in capsys.readouterr().out
    assert cli.main([command, "--help"]) == 0
    assert f"python -m pruning {command}" in capsys.readouterr().out


@pytest.mark.job
def test_help_imports_nothing_large():
    code = """
import sys
from pruning.cli import main
assert main(["--help"]) == 0
assert main([]) == 0
large = {"torch", "transformers", "hydra", "omegaconf", "pandas", "altair", "wandb"}
assert not large & sys.modules.keys(), large & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "{none}"], "none is no directory: give"),
        (["sync", "{none}"], "none is no directory: give"),
        (["sync", "{none}", "tracker.timeout=-1"], "tracker.timeout=-1.0 must be above 0"),
        (["dashboard", "{none}", "colour=red"], "colour"),
        (["profile", "model=nonesuch"], "nonesuch"),
        (["profile", "show", "{none}"], "is no latency table"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, tmp_path, capsys):
    arguments = [argument.format(none=tmp_path / "none") for argument in arguments]
    assert cli.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize("arguments", [["nonesuch"], ["report"], ["profile", "sideways"]])
def test_a_command_that_there_is_not_is_2_and_named(arguments, capsys):
    assert cli.main(arguments) == 2
    assert "python -m pruning" in capsys.readouterr().err


def test_a_fault_of_ours_is_not_hidden(monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr("pruning.results.points.read_results", fails)
    with pytest.raises(RuntimeError, match="ours"):
        cli.main(["sync", str(tmp_path)])
