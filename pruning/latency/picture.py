"""A latency table for people: as text, and drawn."""

from collections.abc import Iterator

from pruning.latency.grid import offered
from pruning.latency.table import LatencyTable, text
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
        lines = [f"\n| {part} | {unit} | of dense | |", "| ---: | ---: | ---: | --- |"]
        for level, cost in ms.items():
            note = "" if level in kept else "not faster than a larger one: not offered"
            share = cost / dense if dense else 0.0
            lines.append(f"| {text(level)} | {cost:.4g} | {share:.3f} | {note} |")
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
    of = [q for name, q in table.quantiles.items() if f" {part} " in f" {name}"]
    return max((high - low) / middle for low, middle, high, _ in of)


def draw(table: LatencyTable, title: str) -> str:
    """Return an SVG: the cost of each part over its size, dense at the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(table.parts), 3.6), layout="constrained")
    panels = figure.subplots(1, len(table.parts), squeeze=False)[0]
    for axes, (part, ms) in zip(panels, table.parts.items(), strict=True):
        lattice = any(isinstance(level, tuple) for level in ms)
        rows = sorted({level[1] for level in ms if isinstance(level, tuple)}) if lattice else [0]
        for row in rows:
            points = sorted(
                (level[0] if isinstance(level, tuple) else level, cost)
                for level, cost in ms.items()
                if not isinstance(level, tuple) or level[1] == row
            )
            label = f"{row} query heads per group" if lattice and row else None
            axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=label)
        axes.set(xlabel="KV groups" if lattice else "units", ylabel=table.unit, title=part)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if lattice:
            axes.legend(fontsize="small")
    figure.suptitle(f"{title} ({table.basis})", fontsize="medium")
    return svg(figure, title)
