"""Charts as files; the same numbers give the same file."""

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altair import TopLevelMixin


def svg(chart: "TopLevelMixin") -> str:
    """Return a chart as SVG, the same text for the same chart."""
    out = io.StringIO()
    chart.save(out, format="svg")
    order: dict[str, str] = {}  # Vega counts gradients and clips on, chart after chart

    def renumber(name: re.Match[str]) -> str:
        return name[1] + order.setdefault(name[0], str(len(order)))

    return re.sub(r"\b(gradient_|clip)\d+\b", renumber, out.getvalue())


def png(chart: "TopLevelMixin") -> bytes:
    """Return a chart as PNG, twice as many dots as points."""
    out = io.BytesIO()
    chart.save(out, format="png", scale_factor=2)
    return out.getvalue()


def spec(chart: "TopLevelMixin") -> dict[str, Any]:
    """Return a chart as a Vega-Lite specification, its numbers where they are drawn."""
    import altair as alt

    with alt.data_transformers.enable(consolidate_datasets=False):
        return chart.to_dict()
