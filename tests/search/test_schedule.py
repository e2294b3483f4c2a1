"""Schedules against the published numbers, and against what they promise for any depth."""

from itertools import pairwise

import pytest

from pruning.models.shape import Width
from pruning.models.sites import Kind, Site
from pruning.search.options import Ramp
from pruning.search.schedule import chooser, every_shape, ratios, shapes, share
from pruning.search.search import Schedule


def schedule(ramp: Ramp = Ramp.log, first: float = 0.0625, last: float = 0.25) -> Schedule:
    return Schedule("schedule", ramp=ramp, first=first, last=last)


def test_the_published_command():
    """r_0 = 0.0625, r_31 = 0.25: a mean of 0.2004, and 2, 3, 4, 4, 5 ... 8 of 32 heads."""
    found = ratios(schedule().form(), 32, mean=0.2004)
    assert found[0] == pytest.approx(0.0625, rel=1e-3)
    assert found[-1] == pytest.approx(0.25, rel=1e-3)
    assert [round(32 * r) for r in found[:5]] == [2, 3, 4, 4, 5]
    assert round(32 * found[-1]) == 8


@pytest.mark.parametrize("ramp", list(Ramp))
@pytest.mark.parametrize("blocks", [1, 12, 16, 24, 28, 30, 32, 40, 48, 80])
def test_a_mean_is_met_at_any_depth(blocks, ramp):
    found = ratios(schedule(ramp).form(), blocks, 0.3)
    assert sum(found) / blocks == pytest.approx(0.3, rel=1e-12)
    rises = [b >= a for a, b in pairwise(found)]
    falls = [b <= a for a, b in pairwise(found)]
    assert all(falls if "decrease" in ramp else rises)
    if ramp is not Ramp.uniform and blocks > 1:
        assert max(found) / min(found) == pytest.approx(4)


@pytest.mark.parametrize("mean", [0.7, 0.85, 0.99])
@pytest.mark.parametrize("ramp", list(Ramp))
def test_a_mean_is_met_where_the_last_blocks_have_no_more_to_give(ramp, mean):
    found = ratios(schedule(ramp).form(), 30, mean)
    assert sum(found) / 30 == pytest.approx(mean, rel=1e-12)
    assert max(found) <= 1
    below = [x for x in found if x < 1]  # in the schedule's proportions still
    form = ratios(schedule(ramp).form(), 30, 0.3)
    of = [f for f, x in zip(form, found, strict=True) if x < 1]
    assert below == pytest.approx([f * below[0] / of[0] for f in of])


def test_a_schedule_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^search\.last=0\.0 removes nothing"):
        schedule(first=0.0, last=0.0)


def test_a_share_counts_parameters():
    """Nine heads of four in three KV groups on a hidden size of 10: q and o, k and v."""
    site = Site(0, Kind.ATTENTION, 9, 4, 3)
    for left in every_shape(site, 1):
        q_and_o, k_and_v = 2 * left.units * 4 * 10, 2 * left.groups * 4 * 10
        whole = 2 * 9 * 4 * 10 + 2 * 3 * 4 * 10
        assert share(site, left) == pytest.approx((q_and_o + k_and_v) / whole)
    assert share(Site(0, Kind.FFN, 1536, 1), Width(384)) == 0.25


def test_widths_below_the_dense_one_are_aligned():
    widths = [shape.units for shape in every_shape(Site(0, Kind.FFN, 100, 1), 32)]
    assert widths == [100, 96, 64, 32]
    assert every_shape(Site(0, Kind.FFN, 64, 1), 32) == [Width(64), Width(32)]
    assert len(every_shape(Site(0, Kind.ATTENTION, 6, 4, 3), 32)) == 6  # heads are what they are


def test_shapes_are_the_nearest_and_never_gone():
    sites = [
        site
        for b in range(8)
        for site in (Site(b, Kind.ATTENTION, 6, 4, 3), Site(b, Kind.FFN, 100, 1))
    ]
    options = {site: [*every_shape(site, 1), site.gone] for site in sites}
    for mean in (0.1, 0.2, 0.5):
        left = shapes(schedule().form(), options, mean)
        at = ratios(schedule().form(), 8, mean)
        for site, shape in left.items():
            wanted = 1 - at[site.block]
            if site.kind is Kind.FFN:
                assert abs(shape.units - 100 * wanted) <= 0.5  # half a channel
            gaps = [abs(share(site, other) - wanted) for other in every_shape(site, 1)]
            assert abs(share(site, shape) - wanted) == pytest.approx(min(gaps))
    everything = shapes(schedule(Ramp.uniform).form(), options, 1.0)
    assert all(share(site, shape) > 0 for site, shape in everything.items())


@pytest.mark.job
def test_a_budget_is_met_by_the_least_ratio():
    sites = [Site(b, Kind.FFN, 100, 1) for b in range(8)]
    options = {site: [Width(units) for units in range(100, 0, -10)] for site in sites}

    def total(left) -> float:
        return float(sum(width.units for width in left.values()))

    choose = chooser(schedule().form(), options, total)
    looser = [shapes(schedule().form(), options, step / 1000) for step in range(1001)]
    least = total(shapes(schedule().form(), options, 1.0))
    for budget in (800.0, 700.0, 500.0, least):
        left = choose(budget)
        assert left is not None
        assert total(left) <= budget
        assert total(left) == next(total(x) for x in looser if total(x) <= budget)
    assert choose(least - 1.0) is None  # a mean ratio of 1 is the most
