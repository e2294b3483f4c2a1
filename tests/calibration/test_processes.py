"""Moments of several processes: those of one, and so are levels and allocation."""

import sys
from dataclasses import replace

import pytest
import torch

from pruning.calibration.calibration import Stored
from pruning.calibration.moments import Moments
from pruning.methods.slimgpt import SlimGPT
from pruning.methods.ziplm import Score
from pruning.models.sites import sites
from pruning.models.tensor_files import places
from pruning.search.search import Schedule
from pruning.system.cache import Cache
from tests.calibration.test_moments import close
from tests.helpers.families import llama
from tests.helpers.tiny import job_with, padded_batches, pruning_context, text, ziplm
from tests.models.test_streamed import search

TORCHRUN = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
WRITE = "pruning.calibration.moments:Moments.write"
BATCHES = padded_batches(count=5)  # the second process gets none that are held out


def context(directory, launcher, search, stored=Stored.auto):
    options = replace(text(), text=None, launcher=launcher, stored=stored)
    return pruning_context(llama(), BATCHES, search, job_with(Cache(directory)), options)


def planned(directory, launcher, stored=Stored.auto):
    posed = context(directory, launcher, search(), stored)
    plan = ziplm(Score.obs, [0.01, float("inf")]).plan(posed)
    return plan, plan.choose(posed.table.budget(1.5))


def moments(cache):
    (directory,) = (path for path in (cache / "moments").iterdir() if path.is_dir())
    return Moments(directory)


@pytest.mark.job
def test_two_processes_give_what_one_gives_and_go_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    deadly = f"{TORCHRUN} -m tests.helpers.deadly {WRITE}"
    one, chosen = planned(tmp_path / "one", None)
    with pytest.raises(ValueError, match=r"^calibration\.launcher=.* ended with code 1: "):
        planned(tmp_path / "two", f"{deadly} 2")  # one block is done
    two, also = planned(tmp_path / "two", f"{deadly} 3")  # two are left: a third would kill it
    assert also == chosen
    for site in sites(llama()):
        splits = [moments(tmp_path / name)[site] for name in ("one", "two")]
        assert splits[1].share == pytest.approx(splits[0].share, rel=1e-6)
        for part in ("fit", "held"):
            expected, found = (getattr(split, part) for split in splits)
            for name in ("H", "mean", "covariance", "variance"):
                values = getattr(expected, name).double()
                assert close(getattr(found, name), values, tolerance=1e-6), f"{site} {part} {name}"
        expected, found = one.levels[site], two.levels[site]
        assert found.shapes == expected.shapes
        assert torch.equal(found.keeps, expected.keeps)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.ridge == expected.ridge
    first, second = (moments(tmp_path / name).identity for name in ("one", "two"))
    assert first == second  # the key does not hold how many they were
    assert not [*(tmp_path / "two" / "checkpoints").iterdir()]
    _, again = planned(tmp_path / "half", TORCHRUN, Stored.fit)
    assert again == chosen
    for file in moments(tmp_path / "half").directory.glob("*.safetensors"):
        assert not any(".held." in name for name in places(file))


def test_a_launcher_that_cannot_be_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^calibration\.launcher='no-such-one' is no command"):
        planned(tmp_path, "no-such-one")
    posed = context(tmp_path, "torchrun", Schedule("schedule"))
    with pytest.raises(ValueError, match=r"^calibration\.launcher='torchrun' .* method=slimgpt"):
        SlimGPT("slimgpt").plan(posed)
