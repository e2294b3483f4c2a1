"""The alignment that is found is that of the clock: a fake one, on which coarse widths are fast."""

import pytest
import torch

from pruning.latency.alignment import CANDIDATES, aligned, finest, width
from pruning.latency.clock import Timing
from pruning.latency.profile import profile
from pruning.latency.workload import Phase, Workload
from pruning.models.sites import sites
from tests.families import GATED, llama, random_model
from tests.latency.test_profile import hardware


@pytest.mark.parametrize("units", [1536, 3072, 11008, 14336])
def test_a_width_is_a_multiple_of_its_step_and_of_nothing_coarser(units):
    for step in CANDIDATES:
        of = width(units, step)
        assert of % step == 0
        assert of % (2 * step) == step
        assert units / 2 <= of <= 0.75 * units


def tiles(of: int, tile: int) -> float:
    """Let time be that of whole tiles, on a device that computes no smaller ones."""
    return 5.0 + -(-of // tile) * tile / 100


@pytest.mark.parametrize("tile", CANDIDATES)
def test_the_alignment_is_the_tile(tile):
    """Of 256 units, so that the part of a tile that is lost counts more than 3 %."""
    at = {step: 256 + step for step in CANDIDATES}
    timings = {of: Timing([tiles(of, tile)] * 3) for of in (0, *at.values())}
    assert finest(at, timings) == tile


def test_what_cannot_be_told_apart_is_as_good():
    at = {8: 104, 16: 112}
    timings = {0: Timing([0.0] * 3), 104: Timing([9.4, 11.4, 13.4]), 112: Timing([11.2] * 3)}
    assert finest(at, timings) == 8
    timings[104] = Timing([11.4] * 3)
    assert finest(at, timings) == 16


def test_a_profile_finds_its_alignment(monkeypatch):
    model = random_model(type(llama().config)(**(GATED | {"intermediate_size": 256})))

    def timed(calls, *_, **__):
        assert all(isinstance(call(), torch.Tensor) for call in calls.values())
        return {of: Timing([tiles(of, 32)] * 3) for of in calls}

    monkeypatch.setattr("pruning.latency.alignment.interleaved", timed)
    assert aligned(model, Workload(Phase.prefill, 2, 9), 3) == 32
    table = profile(model, hardware(alignment=None), sites(model)[:2])
    assert table.setting["alignment"] == 32
    assert all(level % 32 == 0 for level in table.parts["ffn"])


def test_a_small_model_has_no_alignment():
    assert (
        aligned(
            random_model(type(llama().config)(**(GATED | {"intermediate_size": 48}))),
            Workload(Phase.prefill, 2, 9),
            3,
        )
        == 1
    )
