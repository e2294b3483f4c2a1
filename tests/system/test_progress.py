"""Bars count what there is, also where more comes than was expected."""

import io
import os
import sys

import pytest
from rich.console import Console

from pruning.job.launch import calm_bars
from pruning.system import progress


@pytest.fixture
def said(monkeypatch) -> io.StringIO:
    said = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=said, width=80))
    return said


@pytest.mark.parametrize(
    ("items", "total", "counts"),
    [([1, 2, 3], None, "3/3"), (iter([1, 2, 3]), 2, "3/3"), (iter([1, 2]), 4, "2/4")],
)
def test_a_bar_ends_at_what_there_was(items, total, counts, said):
    assert len(list(progress.track(items, "measure", total))) == int(counts[0])
    assert f" {counts} " in said.getvalue()


def test_bars_of_others_are_seldom_written_to_a_file(monkeypatch):
    for name in ("TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    calm_bars()
    assert float(os.environ["TQDM_MININTERVAL"]) == 30
    monkeypatch.setenv("TQDM_MININTERVAL", "5")
    calm_bars()
    assert os.environ["TQDM_MININTERVAL"] == "5"
