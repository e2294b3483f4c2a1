import math
from dataclasses import replace

import pytest
import torch

from pruning.latency.grid import heads, monotone, widths
from pruning.latency.table import LatencyTable
from pruning.models.shape import Heads
from pruning.models.sites import Kind, Site
from tests.helpers.shapes import costs, shapes

# ALGORITHMS.md 1.4: the widths of BERT-base in ZipLM's published database
BERT = """3072 2765 2488 2239 2016 1814 1633 1469 1322 1190 1071 964 868 781 703 632 569 512 461 415
373 336 303 272 245 221 198 179 161 145 130 117 105 95 85 77 69 62 56 50 45 41 37 33"""

TABLE = LatencyTable(
    parts={
        "attention": costs({(2, 2): 3.0, (2, 1): 2.5, (1, 2): 2.0, (1, 1): 1.25, (0, 0): 0.0}),
        "ffn": costs({8: 4.0, 5: 3.0, 2: 0.5, 0: 0.0}),
        "mlp.up_proj": costs({8: 2.0, 7: 2.5, 5: 1.9, 3: 1.9, 2: 1.0}),
    },
    rest=6.0,
    blocks=2,
    spread=1.05,
    dense=20.0,
)
SITES = [
    site
    for b in range(2)
    for site in (Site(b, Kind.ATTENTION, 4, 4, 2, removable=b > 0), Site(b, Kind.FFN, 8, 1))
]


def test_widths_of_bert_are_the_published_ones():
    assert widths(3072, 1) == shapes([*map(int, BERT.split()), 0])


@pytest.mark.parametrize(("units", "alignment"), [(1536, 32), (11008, 64), (96, 8), (100, 32)])
def test_aligned_widths(units, alignment):
    grid = [width.units for width in widths(units, alignment)]
    assert (grid[0], grid[-1]) == (units, 0)
    assert all(width % alignment == 0 for width in grid[1:])
    assert grid == sorted(set(grid), reverse=True)
    exact = [units * 0.9**i for i in range(44)]
    for width in grid[:-1]:  # each is the rounding of a point of the grid
        assert min(abs(width - point) for point in exact) <= alignment / 2
    for point in exact[1:]:  # and each point is rounded to one, unless that is 0
        assert min(abs(width - point) for width in grid) <= alignment / 2


def test_a_width_below_the_alignment_can_only_stay_or_go():
    assert widths(20, 64) == shapes([20, 0])


def test_heads_are_a_lattice():
    lattice = [(2, 3), (2, 2), (2, 1), (1, 3), (1, 2), (1, 1), (0, 0)]
    assert heads(2, 3) == shapes(lattice)
    assert heads(1, 1) == shapes([(1, 1), (0, 0)])
    assert len(heads(8, 4)) == 33


def test_no_level_costs_more_than_a_larger_one():
    ms = costs({100: 5.0, 90: 7.0, 80: 4.5, 60: 4.6, 0: -0.2})
    assert monotone(ms) == costs({100: 5.0, 90: 5.0, 80: 4.5, 60: 4.5, 0: 0.0})
    ms = costs({(2, 2): 4.0, (2, 1): 5.0, (1, 2): 3.0, (1, 1): 3.5})
    assert monotone(ms) == costs({(2, 2): 4.0, (2, 1): 4.0, (1, 2): 3.0, (1, 1): 3.0})


def allocation(heads_kept: list[list[int]], channels: list[int]):
    """Keep these heads and the first so many channels of each block."""
    found = {}
    for site in SITES:
        keep = torch.zeros(site.units, dtype=torch.bool)
        if site.kind is Kind.FFN:
            keep[: channels[site.block]] = True
        else:
            keep[heads_kept[site.block]] = True
        found[site] = keep
    return found


@pytest.mark.parametrize(
    ("heads_kept", "channels", "ms"),
    [
        ([[0, 1, 2, 3]] * 2, [8, 8], 20.0),
        ([[2, 3], [1, 2]], [5, 0], 6 + 2.0 + 3.0 + 2.5 + 0.0),  # one group whole; a head of each
        ([[1], []], [2, 8], 6 + 1.25 + 0.5 + 0.0 + 4.0),
    ],
)
def test_predict_adds_what_is_kept(heads_kept, channels, ms):
    assert TABLE.predict(allocation(heads_kept, channels)) == pytest.approx(ms, rel=1e-12)


def test_budget_and_the_most_that_can_be_had():
    assert TABLE.budget(2.5) == 8.0
    # block 0 keeps an attention head (1.25); all else goes
    assert TABLE.most(SITES) == pytest.approx(20 / 7.25)
    free = [site for site in SITES if site.block]  # may all go; an encoder's head costs nothing
    assert replace(TABLE, rest=0.0).most(free) == math.inf
    assert TABLE.levels(SITES[0])[-1] == Heads(1, 1)
    assert TABLE.levels(SITES[2])[-1] == Heads(0, 0)
    TABLE.check(2.75, SITES, "local")
    with pytest.raises(ValueError, match=r"^speedup=40 cannot be met on hardware 'local'.* 2\.76;"):
        TABLE.check(40, SITES, "local")


def test_a_table_survives_the_disk(tmp_path):
    TABLE.write(tmp_path / "table.json")
    again = LatencyTable.read(tmp_path / "table.json")
    assert again == TABLE
    for part, of in TABLE.parts.items():
        assert list(again.parts[part]) == list(of)  # dense first


def test_a_rank_is_offered_only_if_it_is_faster_than_every_larger_one():
    up = Site(0, Kind.LINEAR, 8, module="mlp.up_proj")
    assert TABLE.levels(up) == shapes([8, 5, 2])
