"""What is shown while the Trainer trains."""

from types import SimpleNamespace

import pytest

from pruning.tasks.training import UNBOUNDED, Progress


@pytest.mark.parametrize(("steps", "said"), [(4, "1/4 ["), (UNBOUNDED, "1it [")])
def test_a_bar_has_an_end_where_steps_are_the_budget(steps, said, capsys):
    bar = Progress()
    state = SimpleNamespace(is_world_process_zero=True, max_steps=steps, global_step=0)
    bar.on_train_begin(None, state, None)
    state.global_step = 1
    bar.on_step_end(None, state, None)
    bar.on_log(None, state, None, logs={"loss": 1.0})
    bar.on_train_end(None, state, None)
    shown = capsys.readouterr().err
    assert said in shown
    assert "loss" not in shown
    assert str(UNBOUNDED) not in shown.split("\r")[-1]
