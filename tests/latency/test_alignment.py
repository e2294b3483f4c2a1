"""The alignment that is found is that of the clock: a fake one, on which coarse widths are fast."""

import pytest
import torch

from pruning.latency.alignment import CANDIDATES, aligned, finest, width
from pruning.latency.measurement import Measurement
from pruning.latency.profile import profile
from pruning.latency.timer import Timing
from pruning.models.sites import linears, sites
from pruning.runtimes.torch_eager import EAGER
from pruning.runtimes.workload import Phase, Workload
from tests.helpers.families import GATED, llama, random_model
from tests.latency.test_profile import how

PREFILL = Workload(Phase.prefill, 2, 9)
HOW = Measurement(EAGER, PREFILL, 3, None, None, 0.5, 1)


@pytest.mark.parametrize("units", [1536, 3072, 11008, 14336])
def test_a_width_is_a_multiple_of_its_step_and_of_nothing_coarser(units):
    for step in CANDIDATES:
        of = width(units, step)
        assert of % step == 0
        assert of % (2 * step) == step
        assert units / 2 <= of <= 0.75 * units


def tiles(of: int, tile: int, fixed: float = 0.0) -> float:
    """Let time be that of whole tiles, on a device that computes no smaller ones."""
    return fixed + -(-of // tile) * tile / 100


@pytest.mark.parametrize("fixed", [0.0, 3.0])
@pytest.mark.parametrize("tile", [8, 64, 128, 256])
def test_the_alignment_is_the_tile_whatever_a_block_costs_beside_it(tile, fixed):
    """Of widths that end one step behind a tile, where more is lost than 3 %."""
    units = 1024
    at = {step: 512 + step for step in CANDIDATES}
    timings = {of: Timing([tiles(of, tile, fixed)] * 3) for of in (512, 1024, *at.values())}
    assert finest(at, timings, units) == tile


def test_what_cannot_be_told_apart_is_as_good():
    at = {8: 104, 16: 112}
    timings = {of: Timing([of / 10] * 3) for of in (64, 112, 128)}
    timings[104] = Timing([9.4, 11.4, 13.4])  # 10 % above the line, give or take 20 %
    assert finest(at, timings, 128) == 8
    timings[104] = Timing([11.4] * 3)
    assert finest(at, timings, 128) == 16


def test_a_profile_finds_its_alignment(monkeypatch):
    model = random_model(type(llama().config)(**(GATED | {"intermediate_size": 256})))

    def timed(calls, *_, **__):
        assert all(isinstance(call(), torch.Tensor) for call in calls.values())
        return {of: Timing([tiles(of, 32)] * 3) for of in calls}

    monkeypatch.setattr("pruning.latency.alignment.interleaved", timed)
    assert aligned(model, sites(model), HOW) == 32
    table = profile(model, how(model, alignment=None), sites(model))
    assert table.setting["alignment"] == 32
    assert all(level.units % 32 == 0 for level in table.parts["ffn"])


def test_the_smallest_projection_keeps_eight_levels(monkeypatch):
    model = random_model(type(llama().config)(**(GATED | {"intermediate_size": 256})))
    least = min(site.units for site in linears(model))

    def timed(calls, *_, **__):
        return {of: Timing([tiles(of, 256)] * 3) for of in calls}

    monkeypatch.setattr("pruning.latency.alignment.interleaved", timed)
    assert 8 * aligned(model, linears(model), HOW) <= max(least, 8)


def test_a_small_model_has_no_alignment():
    model = random_model(type(llama().config)(**(GATED | {"intermediate_size": 48})))
    assert aligned(model, sites(model), HOW) == 1
