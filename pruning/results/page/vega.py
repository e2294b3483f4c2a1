"""Charts for the page, and the library that draws them as one script."""

import functools
from typing import TYPE_CHECKING, Any

from pruning.system.drawing import spec

if TYPE_CHECKING:
    from altair import Chart, LayerChart


def fitted(chart: "Chart | LayerChart") -> dict[str, Any]:
    """Return a chart that is as wide as its place in the page."""
    import altair as alt

    size = alt.AutoSizeParams(type="fit-x", contains="padding")
    return spec(chart.properties(width="container", autosize=size))


@functools.cache
def library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that defines `vegaEmbed`.

    Bundling takes about two seconds, once per process.
    """
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "<!--" not in script  # it stands in a <script> element as it is
    assert "<script" not in script.lower()
    assert "</script" not in script.lower()
    return script
