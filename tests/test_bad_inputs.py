"""Bad inputs to launch.py and `python -m pruning`: each is one line that says what to do."""

import pytest

from benchmarks.bad_inputs import Case, Trial, cases
from tests.helpers.tmpfs import mountable

pytestmark = pytest.mark.job


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    trial = Trial(tmp_path_factory.mktemp("bad"))
    yield trial
    trial.jobs.close()


def marked(case: Case):
    """Leave all but a part to the slow tests."""
    marks = [] if case.test else [pytest.mark.slow]
    return pytest.param(case, id=f"{case.kind}: {case.name}", marks=marks)


@pytest.mark.parametrize("case", [marked(case) for case in cases()])
def test_a_bad_input_is_one_line(trial: Trial, case: Case):
    if case.mounts and not mountable():
        pytest.skip("this user may not mount a disk")
    assert trial.faults(case) == []


def test_the_list_is_long_and_a_part_of_it_is_tested():
    known = cases()
    assert len(known) >= 100
    assert len({(case.kind, case.name) for case in known}) == len(known)
    assert 15 <= sum(case.test for case in known) <= 30
