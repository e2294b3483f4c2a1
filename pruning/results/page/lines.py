"""Charts of the page with a line per result: its speedups, what it kept, what it cost."""

from collections.abc import Sequence

from pruning.results.page.rows import Row
from pruning.results.page.vega import WIDTH, Spec, layer, tooltip
from pruning.results.result import times

PARTS = {"attention": "query heads", "ffn": "FFN channels"}


def speedups(rows: Sequence[Row]) -> Spec:
    """Draw target, predicted and measured speedup of every result in a line of its own."""
    values = []
    for row in rows:
        speedup = row.run.speedup
        known = {"target": speedup.target, "predicted": speedup.predicted}
        known[speedup.basis] = speedup.reached
        values += [
            {"name": row.title, "kind": kind, "speedup": value, "text": times(value)}
            for kind, value in known.items()
            if value is not None
        ]
    drawn = {value["kind"] for value in values}
    kinds = [kind for kind in ("target", "predicted", "estimated", "measured") if kind in drawn]
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    x = {
        "field": "speedup",
        "type": "quantitative",
        "scale": {"zero": False},
        "axis": {"tickCount": 10},
    }
    kind = {
        "field": "kind",
        "type": "nominal",
        "scale": {"domain": kinds},
        "legend": {"orient": "top", "title": None},
    }
    hover = [*tooltip("name", "kind"), {"field": "text", "title": "speedup"}]
    span = {"aggregate": "min", **x}, {"aggregate": "max", "field": "speedup"}
    layers = [
        layer(
            values,
            {"type": "rule", "color": "#ccc"},
            {"y": y, "x": {**span[0], "title": "speedup"}, "x2": span[1]},
        ),
        layer(
            values,
            {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
            {"y": y, "x": x, "color": kind, "shape": kind, "tooltip": hover},
        )
        | {"name": "speedups"},
    ]
    return _lines(layers, rows)


def kept(rows: Sequence[Row]) -> dict[str, Spec]:
    """Draw by part what every result keeps of each block, dark where all is kept."""
    parts = dict.fromkeys([*PARTS, *(part for row in rows for part in row.kept)])
    return {
        PARTS.get(part, f"rank of {part}"): spec
        for part in parts
        if (spec := _kept(rows, part)) is not None
    }


def _kept(rows: Sequence[Row], part: str) -> Spec | None:
    values = [
        {
            "name": row.title,
            "block": list(blocks),
            "share": [round(left / of, 4) for left, of in blocks.values()],
            "text": [f"{left} of {of}" for left, of in blocks.values()],
        }
        for row in rows
        if (blocks := row.kept.get(part))
    ]
    if not values:
        return None
    color = {
        "field": "share",
        "type": "quantitative",
        "scale": {"scheme": "blues", "domain": [0, 1]},
        "legend": {"orient": "bottom", "title": "share kept", "format": ".0%"},
    }
    encoding = {
        "x": {"field": "block", "type": "ordinal", "axis": {"labelAngle": 0}},
        "y": {"field": "name", "type": "nominal", "sort": None, "title": None},
        "color": color,
        "tooltip": [*tooltip("name", "block"), {"field": "text", "title": "kept"}],
    }
    cells = layer(values, {"type": "rect", "stroke": "white", "strokeWidth": 0.5}, encoding)
    flat = {"transform": [{"flatten": ["block", "share", "text"]}]}
    return _lines([cells | flat], values)


def seconds(rows: Sequence[Row]) -> Spec:
    """Draw what each stage of a job cost, the stages of a result in one bar."""
    values = [
        {"name": row.title, "stage": stage, "seconds": round(spent, 3), "text": f"{spent:.1f} s"}
        for row in rows
        for stage, spent in stages(row.run.seconds).items()
    ]
    order = list(dict.fromkeys(value["stage"] for value in values))
    color = {
        "field": "stage",
        "type": "nominal",
        "scale": {"domain": order, "scheme": "tableau20"},
        "legend": {"orient": "top", "title": None, "columns": 7},
    }
    encoding = {
        "y": {"field": "name", "type": "nominal", "sort": None, "title": None},
        "x": {"field": "seconds", "type": "quantitative", "title": "seconds"},
        "color": color,
        "tooltip": [*tooltip("name", "stage"), {"field": "text", "title": "seconds"}],
    }
    return _lines([layer(values, {"type": "bar"}, encoding)], rows)


def stages(spent: dict[str, float]) -> dict[str, float]:
    """Split the seconds of a job: `solve` is a part of `prune`; what no stage counts is `other`."""
    found = {stage: value for stage, value in spent.items() if stage != "total"}
    if "solve" in found and "prune" in found:
        found["prune"] = max(0.0, found["prune"] - found["solve"])
    other = spent.get("total", 0.0) - sum(found.values())
    return found | ({"other": other} if other > 0 else {})


def _lines(layers: list[Spec], each: Sequence[object]) -> Spec:
    """Put layers on lines of equal height, one for each result."""
    axis = {"axisY": {"labelLimit": 300}}
    return WIDTH | {"height": 18 * len(each), "layer": layers, "config": axis}
