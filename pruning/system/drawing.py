"""Figures as files; the same numbers give the same file."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def svg(figure: "Figure", name: str) -> str:
    """Return a figure as SVG, the same text for the same figure and `name`."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    return out.getvalue()


def png(figure: "Figure") -> bytes:
    """Return a figure as PNG, 200 dots per inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    figure.set_dpi(200)
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()
