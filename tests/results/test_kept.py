"""The picture of what was kept."""

import json
import xml.etree.ElementTree as ET

import pytest

from pruning.results.kept import draw, shares, units


def write(path, sites: dict[str, tuple[int, int]]):
    content = {name: {"of": of, "keep": list(range(kept))} for name, (of, kept) in sites.items()}
    path.write_text(json.dumps(content))
    return path


def test_shares_are_in_the_order_of_blocks(tmp_path):
    sites = {f"block.{i}.attention": (16, 16 - i) for i in (10, 2, 0)}
    sites |= {f"block.{i}.ffn": (100, 10 * i) for i in (0, 2, 10)}
    sites |= {"block.0.mlp.up_proj": (64, 3), "embedding": (4, 4)}
    assert shares(write(tmp_path / "a.json", sites)) == {
        "attention": pytest.approx([1, 14 / 16, 6 / 16]),
        "ffn": pytest.approx([0, 0.2, 1]),
    }


def test_units_are_of_projections_too(tmp_path):
    sites = {"block.2.ffn": (8, 3), "block.0.mlp.up_proj": (64, 3), "embedding": (4, 4)}
    found = units(write(tmp_path / "a.json", sites))
    assert found == {"ffn": {2: (3, 8)}, "mlp.up_proj": {0: (3, 64)}}


def test_a_picture_names_every_model():
    rows = [(f"1.5x, method {i}", {"attention": [1, 0.5], "ffn": [0, 1]}) for i in range(3)]
    picture = draw("study", rows)
    assert picture is not None
    ET.fromstring(picture)
    assert draw("study", rows) == picture  # the same bytes
    assert draw("study", []) is None
    assert draw("study", [("low rank", {})]) is None
    assert draw("study", [*rows, ("deeper", {"attention": [1] * 3, "ffn": [1] * 3})]) is None
