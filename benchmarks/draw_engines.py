"""Draw what pruning for an engine gives: milliseconds of the dense and of the pruned model there.

    python benchmarks/draw_engines.py        # docs/data/engines.csv to docs/images/engines.svg

The file has the rows of docs/benchmarks.md, 'Engines'. With a path as argument, a PNG too.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import vl_convert

DOCS = Path(__file__).parent.parent / "docs"
COLORS = {"dense": "#7f7f7f", "pruned to 1.5x": "#d62728"}


def rows(path: Path) -> list[dict[str, Any]]:
    """Read the results, the slowest dense model first."""
    with path.open() as file:
        read = [
            {"engine": r["engine"], "phase": r["phase"], "speedup": float(r["measured"])}
            | {"dense_ms": float(r["dense_ms"])}
            for r in csv.DictReader(file)
        ]
    return sorted(read, key=lambda row: -row["dense_ms"])


def picture(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the Vega-Lite specification."""
    values = [
        {
            "row": f"{r['engine']}, {r['phase']}",
            "dense": r["dense_ms"],
            "pruned": r["dense_ms"] / r["speedup"],
            "said": f"{r['speedup']:.2f}x",
        }
        for r in results
    ]
    y = {"field": "row", "type": "nominal", "sort": None, "title": None}
    x = {
        "type": "quantitative",
        "title": "milliseconds of a call, measured in the engine (log scale)",
        "scale": {"type": "log", "domain": [2.5, 500], "nice": False},
        "axis": {"values": [3, 5, 10, 20, 50, 100, 200, 400]},
    }
    marks = [
        {
            "mark": {"type": "point", "filled": True, "opacity": 1, "size": 90},
            "encoding": {
                "y": y,
                "x": x | {"field": field},
                "color": {
                    "datum": name,
                    "type": "nominal",
                    "title": None,
                    "scale": {"domain": list(COLORS), "range": list(COLORS.values())},
                },
            },
        }
        for field, name in zip(("dense", "pruned"), COLORS, strict=True)
    ]
    line = {
        "mark": {"type": "rule", "strokeWidth": 2, "color": "#ccc"},
        "encoding": {"y": y, "x": x | {"field": "pruned"}, "x2": {"field": "dense"}},
    }
    label = {
        "mark": {"type": "text", "align": "right", "dx": -10, "fontSize": 12},
        "encoding": {"y": y, "x": x | {"field": "pruned"}, "text": {"field": "said"}},
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "white",
        "padding": 10,
        "width": 480,
        "height": {"step": 28},
        "data": {"values": values},
        "layer": [line, *marks, label],
        "config": {
            "font": "Helvetica, Arial, sans-serif",
            "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"},
            "axisY": {"labelLimit": 300},
            "legend": {"labelFontSize": 13, "symbolSize": 90, "symbolType": "circle"},
            "view": {"stroke": None},
        },
    }


def main() -> None:
    """Write the SVG."""
    specification = picture(rows(DOCS / "data" / "engines.csv"))
    (DOCS / "images" / "engines.svg").write_text(vl_convert.vegalite_to_svg(specification))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_bytes(vl_convert.vegalite_to_png(specification, scale=1.5))


if __name__ == "__main__":
    main()
