"""What sets environments apart."""

import sys

import pytest
import torch

from pruning.system.environment import differences, forget_peaks, peaks, resident


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere peaks are those of the process")
def test_peaks_are_those_since_they_were_forgotten():
    forget_peaks()
    before = peaks()[0]
    large = torch.ones(2**27)  # half a GiB
    assert peaks()[0] > before + 0.4
    del large
    assert peaks()[0] > before + 0.4
    forget_peaks()
    assert peaks()[0] < before + 0.2


def test_what_is_resident_comes_and_goes():
    before, _ = resident()
    large = torch.ones(2**27)  # half a GiB
    assert before + 0.4 < resident()[0] < before + 0.6
    del large
    assert resident()[0] < before + 0.2


def test_differences():
    same = {"cpu": "A", "gpu": None, "packages": {"torch": "2"}}
    assert differences([same, dict(same)]) == {}
    assert differences([same, {"cpu": "A"}]) == {}  # older, and does not tell
    other = {"cpu": "A", "gpu": "H", "packages": {"torch": "3"}}
    assert differences([same, other, {"cpu": "A"}]) == {
        "gpu": ["None", "H", None],
        "packages.torch": ["2", "3", None],
    }
