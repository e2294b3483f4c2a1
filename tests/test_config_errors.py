"""A mistake in an option is one line: what is wrong with it, and what there is in its place."""

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from pruning import prune
from pruning.cli import main
from pruning.composition import compose
from pruning.job.failure import in_one_line, is_for_users

MISTAKES = {
    "speedpu=2": "speedpu is not an option: did you mean speedup? choose one of cache,",
    "seedup=2": "seedup is not an option: did you mean speedup? choose one of cache,",
    "sutdy=x": "sutdy is not an option: did you mean study? choose one of cache,",
    "tacker=none": "tacker is not an option: did you mean tracker? choose one of cache,",
    "sped=2": "sped is not an option: did you mean speedup? choose one of cache,",
    "method=zipml": "method=zipml is not an option: did you mean ziplm? choose one of dense,",
    "method.ratio=0.2": "method.ratio is not an option of method=ziplm: choose one of attention_s",
    "recovery.steps=3": "recovery.steps is not an option of recovery=none, which has none; rec",
    "calibration.text.pth=x": "calibration.text.pth is not an option: did you mean path? choose",
    "experiment=mine": "experiment=mine is not an option: choose one of compare,",
    "model=local": "model.path needs a value (hub id, directory or .gguf file;",
    "calibration=text": "calibration.text.path needs a value: give calibration.text.path=VALUE;",
    "method.ridges=0.1": "method.ridges=0.1 is not a list: give FIELD=[VALUE,VALUE]",
    "speedup": "speedup has no value: give speedup=VALUE, without spaces",
    "speedup=fast": "speedup=fast: Value 'fast' of type 'str' could not be converted to Float;",
    "speedup=1.5,2": "speedup=1.5,2: for a job for each value give -m; a list is FIELD=[VALUE,VA",
}


def said_of(override):
    """Return what a launch ends with; tests/test_bad_inputs.py starts some in a shell."""
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        compose([override])
    return in_one_line(caught.value)


@pytest.mark.parametrize("override", MISTAKES)
def test_launch_names_the_remedy(override):
    line = said_of(override)
    assert line.startswith(MISTAKES[override])
    assert "\n" not in line
    assert not any(word in line for word in ("full_key", "object_type", "search path", "append"))


def test_an_error_without_words_has_a_line_and_a_traceback():
    assert in_one_line(ValueError()) == "ValueError"
    assert not is_for_users(ValueError())
    assert is_for_users(ValueError("method.ratio=2 must be below 1"))


def test_options_that_have_the_field_are_named():
    assert "; method=slimgpt has it;" in said_of("method.ratio=0.2")
    assert "; recovery=distill has it;" in said_of("recovery.steps=3")


def test_so_does_the_command_line(capsys):
    assert main(["profile", "hardwere.batch=2"]) == 1
    assert "hardwere is not an option: did you mean hardware?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("text", r"^calibration\.text\.path needs a value"),
        ("tiny/text.txt", r"^calibration=tiny/text\.txt is not an option: choose one of c4, "),
    ],
)
def test_python_says_the_same_of_a_choice_by_name(choice, said):
    with pytest.raises(ValueError, match=said):
        prune(None, None, speedup=1.5, calibration=choice)


def test_python_raises_a_value_error_without_another_traceback():
    with pytest.raises(ValueError, match="method=zipml is not an option: did you mean ziplm") as e:
        prune(None, None, speedup=1.5, method="zipml")
    assert e.value.__suppress_context__
