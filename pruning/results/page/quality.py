"""Quality over speedup, as a chart of the page."""

from collections.abc import Sequence
from typing import Any

from pruning.results.page.rows import Row
from pruning.results.page.vega import WIDTH, Spec, layer, tooltip
from pruning.results.points import Point, is_cost
from pruning.results.report import quantity
from pruning.results.result import times

# a star of five points, in a circle of radius 1
STAR = (
    "M0,-1L.225,-.309L.951,-.309L.363,.118L.588,.809L0,.382"
    "L-.588,.809L-.363,.118L-.951,-.309L-.225,-.309Z"
)


def quality(rows: Sequence[Row], points: Sequence[Point], metric: str) -> Spec:
    """Draw a metric over the speedup: a point per result, a line per method, dense a star.

    The bar of a point is half the range over seeds; of a single run, its standard error.
    """
    bases = " or ".join(sorted({row.run.speedup.basis for row in rows}))
    labels = list(dict.fromkeys(row.label for row in rows))
    x = {
        "field": "speedup",
        "type": "quantitative",
        "title": f"{bases} speedup",
        "scale": {"zero": False, "nice": False, "padding": 14},
    }
    y = {
        "field": "value",
        "type": "quantitative",
        "title": None,
        "scale": {"type": "log"} if is_cost(metric) else {"zero": False},
    }
    y["scale"] |= {"nice": False, "padding": 12}
    color = {
        "field": "method",
        "type": "nominal",
        "scale": {"domain": labels, "scheme": "tableau10" if len(labels) <= 10 else "tableau20"},
        "legend": {"orient": "bottom", "columns": 2, "title": None, "labelLimit": 260},
    }
    shape = {"field": "method", "type": "nominal", "scale": {"domain": labels}}
    faint = {"condition": {"param": "chosen", "value": 1}, "value": 0.12}
    hover = [*tooltip("name", "target", "predicted"), {"field": "reached", "title": "speedup"}]
    value = {"field": "metric", "title": metric}
    pick = {"type": "point", "fields": ["method"]}
    chosen = {"name": "chosen", "select": pick, "bind": "legend"}
    star = {"type": "point", "shape": STAR, "filled": True, "size": 240, "opacity": 1}
    star["color"] = "#222"
    means, drawn = centres(points, metric), dots(rows, metric)
    spans = [m for m in means if m["low"] is not None]
    anchors = dense_models(rows, metric)
    through = {"x": x, "y": y, "color": color}
    bar = through | {"y": y | {"field": "low"}, "y2": {"field": "high"}, "opacity": faint}
    layers = [
        layer(anchors, {"type": "rule", "color": "#bbb"}, {"y": y}),
        layer(means, {"type": "line", "strokeWidth": 1.5}, through | {"opacity": faint}),
        layer(spans, {"type": "rule", "strokeWidth": 1.5}, bar),
        layer(
            drawn,
            {"type": "point", "filled": True, "size": 70},
            through | {"shape": shape, "opacity": faint, "tooltip": [*hover, value]},
        )
        | {"name": "results", "params": [chosen]},
        layer(
            anchors,
            star,
            {"x": x, "y": y, "tooltip": [*tooltip("name"), value]},
        )
        | {"name": "dense"},
    ]
    return WIDTH | {"height": 280, "layer": layers}


def dots(rows: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """Return a point per result for which a metric is finite."""
    return [
        {
            "name": row.title,
            "method": row.label,
            "target": times(row.run.speedup.target),
            "predicted": times(row.run.speedup.predicted),
            "reached": row.speedup,
            "metric": quantity(row.run.evaluation.pruned, metric),
            "speedup": row.run.speedup.reached,
            "value": value,
        }
        for row in rows
        if (value := row.run.evaluation.pruned.get(metric)) is not None
    ]


def centres(points: Sequence[Point], metric: str) -> list[dict[str, Any]]:
    """Return the mean of every point, and the ends of its bar, null without one."""
    found = []
    for p in points:
        if (centre := p.centre(metric)) is None:
            continue
        (speedup, value), spread = centre, p.spread(metric)
        ends = (None, None) if spread is None else (value - spread, value + spread)
        if ends[0] is not None and ends[0] <= 0 and is_cost(metric):
            ends = value, ends[1]  # the axis is logarithmic
        of = {"method": p.label, "speedup": speedup, "value": value}
        found.append(of | {"low": ends[0], "high": ends[1]})
    return found


def dense_models(rows: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """Return the anchors: every dense model, as it was first measured."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        dense, name = row.run.evaluation.dense, str(row.run.config["model"]["name"])
        if name not in found and (value := dense.get(metric)) is not None:
            of = {"name": f"{name}, dense", "metric": quantity(dense, metric)}
            found[name] = of | {"speedup": 1.0, "value": value}
    return list(found.values())
