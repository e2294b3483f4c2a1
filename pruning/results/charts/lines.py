"""Charts with a line per result: its speedups, what it kept, what it cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pruning.results.result import times
from pruning.results.rows import Row

if TYPE_CHECKING:
    from altair import Chart, LayerChart

PARTS = {"attention": "query heads", "ffn": "FFN channels"}
HEIGHT = 18  # of a line

KINDS = ("target", "predicted", "estimated", "counted", "measured")  # of speedups


def speedups(rows: Sequence[Row]) -> "LayerChart":
    """Draw target, predicted and measured speedup of every result in a line of its own."""
    import altair as alt

    values: list[dict[str, Any]] = []
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
    kinds = [kind for kind in KINDS if kind in drawn]
    x = alt.X("speedup:Q", title="speedup").scale(zero=False).axis(tickCount=10)
    chart = alt.Chart(alt.Data(values=values))
    layers = [
        chart.mark_rule(color="#ccc").encode(
            y=_names(), x=x.copy().aggregate("min"), x2=alt.X2("speedup", aggregate="max")
        ),
        chart.properties(name="speedups")
        .mark_point(filled=True, size=60, opacity=0.9)
        .encode(
            y=_names(),
            x=x,
            color=alt.Color("kind:N").scale(domain=kinds).legend(orient="top", title=None),
            shape=alt.Shape("kind:N").scale(domain=kinds),
            tooltip=["name:N", "kind:N", alt.Tooltip("text:N", title="speedup")],
        ),
    ]
    return alt.LayerChart(layer=layers, height=HEIGHT * len(rows))


def kept(rows: Sequence[Row]) -> dict[str, "Chart"]:
    """Draw by part what every result keeps of each block, dark where all is kept."""
    parts = dict.fromkeys([*PARTS, *(part for row in rows for part in row.kept)])
    return {
        PARTS.get(part, f"rank of {part}"): _kept([row for row in rows if row.kept.get(part)], part)
        for part in parts
        if any(row.kept.get(part) for row in rows)
    }


def _kept(rows: Sequence[Row], part: str) -> "Chart":
    import altair as alt

    values = [
        {
            "name": row.title,
            "block": list(row.kept[part]),
            "share": [round(left / whole, 4) for left, whole in row.kept[part].values()],
            "text": [f"{left} of {whole}" for left, whole in row.kept[part].values()],
        }
        for row in rows
    ]
    share = alt.Color("share:Q").scale(scheme="blues", domain=[0, 1])
    return (
        alt.Chart(alt.Data(values=values))
        .transform_flatten(["block", "share", "text"])
        .mark_rect(stroke="white", strokeWidth=0.5)
        .encode(
            x=alt.X("block:O").axis(labelAngle=0),
            y=_names(),
            color=share.legend(orient="bottom", title="share kept", format=".0%"),
            tooltip=["name:N", "block:N", alt.Tooltip("text:N", title="kept")],
        )
        .properties(height=HEIGHT * len(rows))
    )


def seconds(rows: Sequence[Row]) -> "Chart":
    """Draw what each stage of a job cost, the stages of a result in one bar."""
    import altair as alt

    values = [
        {"name": row.title, "stage": stage, "seconds": round(spent, 3), "text": f"{spent:.1f} s"}
        for row in rows
        for stage, spent in stages(row.run.seconds).items()
    ]
    order = list(dict.fromkeys(value["stage"] for value in values))
    stage = alt.Color("stage:N").scale(domain=order, scheme="tableau20")
    return (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            y=_names(),
            x=alt.X("seconds:Q", title="seconds"),
            color=stage.legend(orient="top", title=None, columns=7),
            tooltip=["name:N", "stage:N", alt.Tooltip("text:N", title="seconds")],
        )
        .properties(height=HEIGHT * len(rows))
    )


def stages(spent: dict[str, float]) -> dict[str, float]:
    """Split the seconds of a job: `solve` is a part of `prune`; what no stage counts is `other`."""
    parts = {stage: value for stage, value in spent.items() if stage != "total"}
    if "solve" in parts and "prune" in parts:
        parts["prune"] = max(0.0, parts["prune"] - parts["solve"])
    other = spent.get("total", 0.0) - sum(parts.values())
    return parts | ({"other": other} if other > 0 else {})


def _names():
    """Return the axis of results, in their order."""
    import altair as alt

    return alt.Y("name:N", sort=None, title=None).axis(labelLimit=300)
