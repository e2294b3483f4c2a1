"""A latency table for people: as text, and drawn."""

from collections.abc import Iterator

from pruning.latency.grid import offered
from pruning.latency.table import LatencyTable
from pruning.models.shape import Heads
from pruning.system.drawing import svg


def tables(table: LatencyTable, title: str) -> Iterator[str]:
    """Return what there is to read, in Markdown."""
    setting = ", ".join(f"{key} {value}" for key, value in table.setting.items())
    machine = table.environment.get("gpu") or table.environment.get("cpu") or "no machine"
    unit = table.unit
    yield f"# {title}\n\n{table.basis}: {setting}; {machine}"
    yield f"dense {table.dense:.4g} {unit}, of it {table.rest:.4g} beside {table.blocks} blocks"
    for part, ms in table.parts.items():
        dense, kept = next(iter(ms.values())), offered(ms)
        units = "KV groups x heads of each" if isinstance(next(iter(ms)), Heads) else "kept"
        lines = [f"\n| {part}, {units} | {unit} | of dense | |", "| ---: | ---: | ---: | --- |"]
        for level, cost in ms.items():
            note = "" if level in kept else "not faster than a larger one: not offered"
            share = cost / dense if dense else 0.0
            lines.append(f"| {level} | {cost:.4g} | {share:.3f} | {note} |")
        yield "\n".join(lines)
        if part in table.lowered:
            apart, lowered = _apart(table, part), table.lowered[part]
            yield (
                f"\nQuartiles of a level are up to {apart:.1%} of its median apart, and the "
                f"monotone fit lowered one by up to {lowered:.1%} of the dense one."
            )
    if table.anchors:
        lines = [f"\n| whole model | measured, {unit} | by the table | off |"]
        lines.append("| --- | ---: | ---: | ---: |")
        for name, (ms, told) in table.anchors.items():
            lines.append(f"| {name} | {ms:.4g} | {told:.4g} | {told / ms - 1:+.1%} |")
        yield "\n".join(lines)


def _apart(table: LatencyTable, part: str) -> float:
    """Return the largest interquartile range of a part's levels, as a share of their median."""
    quantiles = [q for name, q in table.quantiles.items() if f" {part} " in f" {name}"]
    return max((high - low) / middle for low, middle, high, _ in quantiles)


def draw(table: LatencyTable, title: str) -> str:
    """Return an SVG: the cost of each part over its size, dense at the right."""
    import altair as alt

    panels = []
    for part, ms in table.parts.items():
        lattice = any(isinstance(level, Heads) for level in ms)
        values = [
            {"size": level.sizes[0], "cost": cost, "heads": level.sizes[1] if lattice else 0}
            for level, cost in ms.items()
        ]
        chart = (
            alt.Chart(alt.Data(values=values), title=part, width=300, height=240)
            .mark_line(point=True)
            .encode(
                x=alt.X("size:Q", title="KV groups" if lattice else "units").axis(tickMinStep=1),
                y=alt.Y("cost:Q", title=table.unit).scale(zero=True),
            )
        )
        if lattice:
            legend = alt.Legend(title="query heads per group", orient="bottom")
            chart = chart.encode(
                color=alt.Color("heads:O", legend=legend).scale(scheme="category10")
            )
        panels.append(chart)
    return svg(
        alt.hconcat(*panels, title=f"{title} ({table.basis})").resolve_scale(color="independent")
    )
