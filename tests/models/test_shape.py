import json

import pytest

from pruning.models.allocation import first_units
from pruning.models.shape import Heads, Width, from_plain, from_text
from pruning.models.sites import Kind, Site, shape

ATTENTION = Site(0, Kind.ATTENTION, 6, 4, 3)
FFN = Site(0, Kind.FFN, 10, 1)
RANKS = Site(0, Kind.LINEAR, 8, module="mlp.up_proj")
TEXTS = {"3x2": Heads(3, 2), "0x0": Heads(0, 0), "1536": Width(1536), "0": Width(0)}


@pytest.mark.parametrize(("text", "left"), TEXTS.items())
def test_a_shape_survives_text_and_json(text, left):
    assert str(left) == text
    assert from_text(text) == left
    assert from_plain(left.plain) == left
    assert from_plain(json.loads(json.dumps(left.plain))) == left


@pytest.mark.parametrize("text", ["", "x", "3x", "3x2x1", "ffn", "1.5"])
def test_what_is_no_shape(text):
    with pytest.raises(ValueError, match="invalid literal"):
        from_text(text)


def test_units_are_those_of_the_site():
    assert Heads(3, 2).units == 6
    assert Width(10).units == 10
    for site in (ATTENTION, FFN, RANKS):
        assert site.whole.units == site.units
        assert site.gone.units == 0


def test_a_shape_contains_what_has_no_more_of_anything():
    assert Heads(3, 2).contains(Heads(3, 2))
    assert Heads(3, 2).contains(Heads(0, 0))
    assert not Heads(3, 1).contains(Heads(1, 2))
    assert not Heads(1, 2).contains(Heads(3, 1))
    assert Width(9).contains(Width(9))
    assert not Width(8).contains(Width(9))
    assert not Heads(3, 2).contains(Width(1))
    assert not Width(9).contains(Heads(1, 1))


def test_shapes_are_sorted_by_groups_first():
    mixed = [Heads(1, 3), Heads(3, 1), Heads(3, 2), Heads(0, 0)]
    ordered = sorted(mixed, key=lambda left: left.sizes, reverse=True)
    assert list(map(str, ordered)) == ["3x2", "3x1", "1x3", "0x0"]


@pytest.mark.parametrize(
    ("site", "left"),
    [
        (ATTENTION, Heads(2, 1)),
        (ATTENTION, Heads(3, 2)),
        (ATTENTION, Heads(0, 0)),
        (FFN, Width(7)),
        (FFN, Width(0)),
        (RANKS, Width(3)),
    ],
    ids=str,
)
def test_the_first_units_have_the_shape(site, left):
    assert shape(site, first_units(site, left)) == left
