"""Jobs that are killed at random moments end as jobs that were left alone."""

import pytest

from benchmarks.endurance import endurance
from tests.helpers.disturbed import KINDS

pytestmark = pytest.mark.job
QUICK = ["one-shot", "slimgpt", "flop"]


def test_ten_kills_lose_nothing():
    line = endurance(10, seed=1, kinds=QUICK)
    assert line["held"] == 10, line
    assert sum(line["by"].values()) == 10


@pytest.mark.slow
def test_kills_of_every_kind_of_job_lose_nothing():
    line = endurance(24, seed=2, kinds=[*KINDS])
    assert line["held"] == 24, line
    assert line["jobs"].keys() == KINDS.keys()
