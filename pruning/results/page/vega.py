"""Vega-Lite: what all charts share, and the library itself as one script."""

import functools
from typing import Any

Spec = dict[str, Any]  # a specification, the numbers inside

WIDTH = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}


def layer(values: list[dict[str, Any]], mark: Spec, encoding: Spec) -> Spec:
    """Return a layer of marks with its own values."""
    return {"data": {"values": values}, "mark": mark, "encoding": encoding}


def tooltip(*fields: str) -> list[dict[str, str]]:
    """Return what is shown where the mouse is."""
    return [{"field": field, "type": "nominal"} for field in fields]


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
