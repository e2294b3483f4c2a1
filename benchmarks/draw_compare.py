"""Draw the first picture of the README: all methods at equal measured speedup.

    python benchmarks/draw_compare.py                          # docs/data/compare.csv as a picture
    python benchmarks/draw_compare.py --study outputs/compare  # after it is written from results

The rows are those of docs/benchmarks.md, 'All methods at equal measured speedup'; with --study they
are printed too. A dot is a result, a line goes through the means of a method.
"""

import argparse
import csv
from pathlib import Path
from statistics import mean
from typing import Any

import vl_convert
from pandas import DataFrame, concat

from pruning.results.card import markdown
from pruning.results.frame import load_results

DOCS = Path(__file__).parent.parent / "docs"
WINDOWS, TOKENS = (2048, 128), "wikitext/text/token_perplexity"
METRIC = "perplexity_2048"
COLUMNS = {  # of results, and what they are called here
    **{"method": "method", "seed": "draw", "target": "target", "measured": "measured"},
    **{f"pruned/{TOKENS}_{window}": f"perplexity_{window}" for window in WINDOWS},
    "parameters_ratio": "parameters_left",
}
TOP = 1000  # what is above is left out, and named below the picture
COLORS = {  # the two papers that solve the weights again stand out
    "ziplm": "#d62728",
    "slimgpt": "#1f77b4",
    "uniform_ffn": "#e08a2c",
    "flap": "#2ca02c",
    "flap_no_bias": "#98ce8a",
    "wanda_sp": "#9467bd",
    "svd": "#17becf",
    "depth": "#8c564b",
    "magnitude": "#7f7f7f",
    "random": "#bcbcbc",
}


def write(study: Path, path: Path) -> None:
    """Write the results of a study to a file, best first for each draw and target; print them."""
    results = load_results(study)
    table = results.reindex(columns=list(COLUMNS)).rename(columns=COLUMNS)
    table["parameters_left"] = (100 * table["parameters_left"]).round(1)
    dense = {"method": "dense", "draw": 0, "target": 1, "measured": 1, "parameters_left": 100}
    for window in WINDOWS:
        dense[f"perplexity_{window}"] = results[f"dense/{TOKENS}_{window}"].iloc[0]
    table = concat([DataFrame([dense]), table.sort_values(["draw", "target", METRIC])])
    table["measured"] = table["measured"].round(3)
    for window in WINDOWS:
        table[f"perplexity_{window}"] = table[f"perplexity_{window}"].round(2)
    table[list(COLUMNS.values())].to_csv(path, index=False, lineterminator="\n")
    with path.open() as file:
        head, *cells = map(tuple, csv.reader(file))
    print(markdown(head, cells))


def rows(path: Path) -> list[dict[str, Any]]:
    """Read the results, numbers as numbers."""
    with path.open() as file:
        return [
            {"method": r["method"], "target": r["target"]}
            | {key: float(r[key]) for key in ("measured", METRIC)}
            for r in csv.DictReader(file)
        ]


def means(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take the draws of the same method and target together."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in results:
        groups.setdefault((r["method"], r["target"]), []).append(r)
    return [
        {"method": method} | {key: mean(r[key] for r in group) for key in ("measured", METRIC)}
        for (method, _), group in groups.items()
    ]


def picture(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the Vega-Lite specification."""
    pruned = [r for r in results if r["method"] != "dense"]
    dense = [r for r in results if r["method"] == "dense"]
    x = {
        "field": "measured",
        "type": "quantitative",
        "title": "measured speedup over the dense model, end to end",
        "scale": {"domain": [0.97, 2.12], "nice": False},
        "axis": {"values": [1, 1.25, 1.5, 1.75, 2], "labelExpr": "datum.value + 'x'"},
    }
    y = {
        "field": METRIC,
        "type": "quantitative",
        "title": "WikiText-2 perplexity (log scale, lower is better)",
        "scale": {"type": "log", "domain": [20, TOP], "nice": False},
        "axis": {"values": [20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000]},
    }
    scale = {"domain": list(COLORS), "range": list(COLORS.values())}
    color = {"field": "method", "type": "nominal", "scale": scale, "title": None}
    papers = {"test": {"field": "method", "oneOf": ["ziplm", "slimgpt"]}, "value": 3}
    shared = {"x": x, "y": y, "color": color}
    label = {"align": "left", "dx": 10, "dy": 1, "fontSize": 13}
    star = {"filled": True, "color": "black", "size": 60}
    layers = [
        {
            "data": {"values": dense},
            "mark": {"type": "rule", "strokeDash": [4, 4], "color": "#999"},
            "encoding": {"y": y},
        },
        {
            "data": {"values": means(pruned)},
            "mark": {"type": "line", "clip": True},
            "encoding": shared | {"strokeWidth": {"condition": papers, "value": 1.5}},
        },
        {
            "data": {"values": pruned},
            "mark": {"type": "point", "filled": True, "opacity": 1, "size": 40, "clip": True},
            "encoding": shared,
        },
        {
            "data": {"values": dense},
            "mark": {"type": "point", **star},
            "encoding": {"x": x, "y": y},
        },
        {
            "data": {"values": dense},
            "mark": {"type": "text", "text": "dense", **label, "baseline": "bottom"},
            "encoding": {"x": x, "y": y},
        },
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "white",
        "padding": 10,
        "width": 600,
        "height": 340,
        "layer": layers,
        "config": {
            "font": "Helvetica, Arial, sans-serif",
            "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"},
            "legend": {"labelFontSize": 13, "symbolSize": 90, "symbolType": "circle"},
            "view": {"stroke": None},
        },
    }


def main() -> None:
    """Write the SVG; say what is above the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, help="a folder of jobs: their rows are written first")
    parser.add_argument("--png", type=Path, help="a second picture, for whoever cannot see SVG")
    arguments, path = parser.parse_args(), DOCS / "data" / "compare.csv"
    if arguments.study:
        write(arguments.study, path)
    results = rows(path)
    specification = picture(results)
    (DOCS / "images" / "compare.svg").write_text(vl_convert.vegalite_to_svg(specification))
    if arguments.png:
        arguments.png.write_bytes(vl_convert.vegalite_to_png(specification, scale=1.5))
    for r in results:
        if r[METRIC] > TOP:
            print(f"above the picture: {r['method']}, {r['measured']:g}x, {r[METRIC]:g}")


if __name__ == "__main__":
    main()
