"""What models kept of each block, read and drawn."""

import json
import xml.etree.ElementTree as ET

from pruning.results.charts.lines import HEIGHT
from pruning.results.charts.pictures import allocations
from pruning.results.kept import units
from pruning.results.rows import Row
from pruning.system.drawing import spec, svg


def write(path, sites: dict[str, tuple[int, int]]):
    content = {name: {"of": of, "keep": list(range(kept))} for name, (of, kept) in sites.items()}
    path.write_text(json.dumps(content))
    return path


def test_units_are_in_the_order_of_blocks(tmp_path):
    sites = {f"block.{i}.attention": (16, 16 - i) for i in (10, 2, 0)}
    sites |= {f"block.{i}.ffn": (100, 10 * i) for i in (0, 2, 10)}
    kept = units(write(tmp_path / "a.json", sites))
    assert [*kept["attention"].items()] == [(0, (16, 16)), (2, (14, 16)), (10, (6, 16))]
    assert [*kept["ffn"].items()] == [(0, (0, 100)), (2, (20, 100)), (10, (100, 100))]


def test_units_are_of_projections_too(tmp_path):
    sites = {"block.2.ffn": (8, 3), "block.0.mlp.up_proj": (64, 3), "embedding": (4, 4)}
    found = units(write(tmp_path / "a.json", sites))
    assert found == {"ffn": {2: (3, 8)}, "mlp.up_proj": {0: (3, 64)}}


def row(result, title, **kept):
    parts = {part: {i: (left, 4) for i, left in enumerate(each)} for part, each in kept.items()}
    return Row(title, title, result, parts)


def test_a_picture_names_every_model_and_shades_every_block(result):
    rows = [row(result, f"method {i}, 1.5x", attention=[4, 2], ffn=[0, 1]) for i in range(3)]
    picture = svg(allocations("study", rows))
    root = ET.fromstring(picture)
    said = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"study", "query heads", "FFN channels"} <= set(said)
    assert [text for text in said if str(text).startswith("method")] == [r.title for r in rows]
    told = [path.get("aria-label") for path in root.iter("{http://www.w3.org/2000/svg}path")]
    assert sum("kept: 2 of 4" in str(label) for label in told) == len(rows)
    assert svg(allocations("study", rows)) == picture  # the same bytes


def test_models_of_which_no_part_was_cut_as_a_whole_have_no_picture(result):
    assert allocations("study", []) is None
    assert allocations("study", [row(result, "low rank")]) is None
    deeper = [row(result, f"{n}", attention=[1] * n, ffn=[1] * n) for n in (2, 3)]
    assert spec(allocations("study", deeper))["hconcat"][0]["height"] == 2 * HEIGHT
