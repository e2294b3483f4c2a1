"""Pictures of a study for papers: its frontier, and what its models kept of each block."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pruning.results.charts.lines import PARTS, kept
from pruning.results.charts.quality import quality
from pruning.results.points import Point, is_cost, metrics
from pruning.results.rows import Row

if TYPE_CHECKING:
    from altair import Chart, HConcatChart

PANELS = 4  # at most


def frontier(study: str, rows: Sequence[Row], points: Sequence[Point]) -> "HConcatChart":
    """Draw quality over speedup, a panel per metric; perplexities alone where there are some.

    Where nothing was evaluated, the share of parameters that is left.
    """
    import altair as alt

    keys = [key for key in metrics(points) if is_cost(key)] or metrics(points)
    panels = [quality(rows, points, key).properties(title=key) for key in keys[:PANELS]]
    sized = [p.properties(width=420, height=320) for p in panels or [_parameters(rows)]]
    return alt.hconcat(*sized, title=study)


def _parameters(rows: Sequence[Row]) -> "Chart":
    import altair as alt

    values = [
        {"method": row.label, "speedup": row.run.speedup.reached, "left": row.run.params.ratio}
        for row in rows
    ]
    return (
        alt.Chart(alt.Data(values=values))
        .mark_line(point=True)
        .encode(
            x=alt.X("speedup:Q").scale(zero=False),
            y=alt.Y("left:Q", title="parameters").axis(format=".0%"),
            color="method:N",
        )
    )


def allocations(study: str, rows: Sequence[Row]) -> "HConcatChart | None":
    """Draw what every model kept of its heads and channels; None where none did as a whole."""
    import altair as alt

    whole = [row for row in rows if row.kept.keys() == PARTS.keys()]
    if not whole:
        return None
    panels = [
        chart.properties(title=part, width=420).encode(
            y=alt.Y("name:N", sort=None, title=None).axis(labels=not index, labelLimit=300)
        )
        for index, (part, chart) in enumerate(kept(whole).items())
    ]
    return alt.hconcat(*panels, title=study, spacing=12)
