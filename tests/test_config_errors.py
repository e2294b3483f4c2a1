"""A mistake in an option is one line: what is wrong with it, and what there is in its place."""

import sys

import pytest

from pruning import prune
from pruning.cli import main
from pruning.job.launch import shell

MISTAKES = {
    "speedpu=2": "speedpu is not an option: did you mean speedup? choose one of cache,",
    "method=zipml": "method=zipml is not an option: did you mean ziplm? choose one of dense,",
    "method.ratio=0.2": "method.ratio is not an option of method=ziplm: choose one of attention_s",
    "recovery.steps=3": "recovery.steps is not an option of recovery=none: choose one of name; rec",
    "calibration.text.pth=x": "calibration.text.pth is not an option: did you mean path? choose",
    "experiment=mine": "experiment=mine is not an option: choose one of compare,",
    "model=local": "model.path needs a value (hub id, directory or .gguf file;",
    "calibration=text": "calibration.text.path needs a value: give calibration.text.path=VALUE;",
    "speedup=fast": "speedup=fast: Value 'fast' of type 'str' could not be converted to Float;",
    "speedup=1.5,2": "speedup=1.5,2: for a job for each value give -m; a list is FIELD=[VALUE,VA",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_launch_names_the_remedy(override, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["launch.py", override, "dry_run=true"])
    assert shell() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {MISTAKES[override]}")
    assert not any(word in line for word in ("full_key", "object_type", "search path", "append"))


def test_options_that_have_the_field_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for override, said in (
        ("method.ratio=0.2", "; method=slimgpt has it;"),
        ("recovery.steps=3", "; recovery=distill has it;"),
    ):
        monkeypatch.setattr(sys, "argv", ["launch.py", override])
        assert shell() == 1
        assert said in capsys.readouterr().err


def test_so_does_the_command_line(capsys):
    assert main(["profile", "hardwere.batch=2"]) == 1
    assert "hardwere is not an option: did you mean hardware?" in capsys.readouterr().err


def test_python_raises_a_value_error_without_another_traceback():
    with pytest.raises(ValueError, match="method=zipml is not an option: did you mean ziplm") as e:
        prune(None, None, speedup=1.5, method="zipml")
    assert e.value.__suppress_context__
