"""Quality over speedup."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pruning.results.points import Point, is_cost
from pruning.results.report import quantity
from pruning.results.result import times
from pruning.results.rows import Row

if TYPE_CHECKING:
    from altair import LayerChart

# a star of five points, in a circle of radius 1
STAR = (
    "M0,-1L.225,-.309L.951,-.309L.363,.118L.588,.809L0,.382"
    "L-.588,.809L-.363,.118L-.951,-.309L-.225,-.309Z"
)
PARAMETERS = "parameters"  # in the place of a metric: the share of them that is left


def quality(
    rows: Sequence[Row], points: Sequence[Point], metric: str, clicks: bool = False
) -> "LayerChart":
    """Draw a metric over the speedup: a point per result, a line per method, dense a star.

    The bar of a point is half the range over seeds; of a single run, its standard error. With
    `clicks`, one on the legend picks a method.
    """
    import altair as alt

    bases = " or ".join(sorted({row.run.speedup.basis for row in rows}))
    labels = list(dict.fromkeys(row.label for row in rows))
    x = alt.X("speedup:Q", title=f"{bases} speedup").scale(zero=False, nice=False, padding=14)
    kind: dict[str, Any] = {"type": "log"} if is_cost(metric) else {"zero": False}
    y, low = (
        alt.Y(f"{field}:Q", title=None).scale(nice=False, padding=12, **kind)
        for field in ("value", "low")
    )
    scheme = "tableau10" if len(labels) <= 10 else "tableau20"
    color = (
        alt.Color("method:N")
        .scale(domain=labels, scheme=scheme)
        .legend(orient="bottom", columns=2, title=None, labelLimit=260)
    )
    shape = alt.Shape("method:N").scale(domain=labels)
    hover = ["name:N", "target:N", "predicted:N", alt.Tooltip("reached:N", title="speedup")]
    value = alt.Tooltip("metric:N", title=metric)

    def chart(values: list[dict[str, Any]], **named: Any) -> alt.Chart:
        return alt.Chart(alt.Data(values=values), **named)

    means, dense = centres(points, metric), dense_models(rows, metric)
    spans = [mean for mean in means if mean["low"] is not None]
    through: dict[str, Any] = {"x": x, "color": color}
    results = chart(dots(rows, metric), name="results").mark_point(filled=True, size=70, opacity=1)
    if clicks:
        chosen = alt.selection_point(name="chosen", fields=["method"], bind="legend")
        through["opacity"] = alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.12))
        results = results.add_params(chosen)
    layers = [
        chart(dense).mark_rule(color="#bbb").encode(y=y),
        chart(means).mark_line(strokeWidth=1.5).encode(y=y, **through),
        chart(spans).mark_rule(strokeWidth=1.5).encode(y=low, y2="high:Q", **through),
        results.encode(y=y, shape=shape, tooltip=[*hover, value], **through),
        chart(dense, name="dense")
        .mark_point(shape=STAR, filled=True, size=240, opacity=1, color="#222")
        .encode(x=x, y=y, tooltip=["name:N", value]),
        chart(dense).mark_text(align="left", dx=12, dy=-8).encode(x=x, y=y, text="name:N"),
    ]
    return alt.LayerChart(layer=layers)


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
    means: list[dict[str, Any]] = []
    for p in points:
        if (centre := p.centre(metric)) is None:
            continue
        (speedup, value), spread = centre, p.spread(metric)
        low, high = (None, None) if spread is None else (value - spread, value + spread)
        if low is not None and low <= 0 and is_cost(metric):
            low = value  # the axis is logarithmic
        mean = {"method": p.label, "speedup": speedup, "value": value}
        means.append(mean | {"low": low, "high": high})
    return means


def dense_models(rows: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """Return every dense model at 1x, as it was first measured."""
    models: dict[str, dict[str, Any]] = {}
    for row in rows:
        dense, name = row.run.evaluation.dense, str(row.run.config["model"]["name"])
        if name not in models and (value := dense.get(metric)) is not None:
            told = {"name": f"{name}, dense", "metric": quantity(dense, metric)}
            models[name] = told | {"speedup": 1.0, "value": value}
    return list(models.values())
