"""Moments of what one site gives with what another reads, against those with given targets."""

import pytest
import torch

from pruning.calibration.calibration import Weight
from pruning.calibration.crossed import crossed
from pruning.calibration.passes import Reading, block_moments, outputs
from pruning.models.blockwise import advance, embed
from pruning.models.gaps import writers
from pruning.models.sites import blocks, projection, sites
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import padded_batches

BATCHES = padded_batches(count=5)


def at(model, index):
    """Return states that have passed the blocks in front of one."""
    states = [embed(model, batch, False) for batch in BATCHES]
    for passed in range(index):
        advance(states, passed, blocks(model)[passed])
    return states


@torch.no_grad()
@pytest.mark.parametrize("weight", Weight)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "mixtral"])
def test_products_are_the_targets_of_the_readers_own_moments(family, weight):
    """The readers' moments, taken anew with what the sites give as targets: the same tokens."""
    model = FAMILIES[family]()
    readers = writers(model)
    assert readers
    for index, block in enumerate(crossed(model, BATCHES, weight, readers)):
        assert [*block] == [site for site in readers if site.block == index]
        for site, cross in block.items():
            reader, bias = readers[site], getattr(projection(model, site), "bias", None)
            given = outputs(model, index, at(model, index), [site])[site]
            given = [Y if bias is None else Y + bias for Y in given]
            reading = Reading([reader], weight, {reader: given})
            before = at(model, reader.block)
            split = block_moments(model, reader.block, before, reading, advance=False)[reader]
            for found, moment in ((cross.fit, split.fit), (cross.held, split.held)):
                torch.testing.assert_close(found, moment.target, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_an_energy_is_that_of_the_held_out_outputs():
    model = FAMILIES["llama"]()
    attention, ffn = sites(model)[:2]
    (cross,) = next(iter(crossed(model, BATCHES, Weight.none, {ffn: attention}))).values()
    rows = outputs(model, 0, at(model, 0), [ffn])[ffn]
    real = [Y[batch.mask.flatten().bool()] for Y, batch in zip(rows, BATCHES, strict=True)
            if batch.held_out]  # fmt: skip
    expected = torch.cat(real).square().sum(1).mean()
    assert cross.energy == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_of_blocks_that_are_done_there_is_nothing():
    model = FAMILIES["llama"]()
    given = model, BATCHES, Weight.none, writers(model)
    whole = [*crossed(*given)]
    rest = [*crossed(*given, done=lambda index: index < 2)]
    assert rest[:2] == [{}, {}]
    for site, cross in rest[2].items():
        torch.testing.assert_close(cross.fit, whole[2][site].fit)
