"""The frontier of a study, drawn for papers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pruning.results.points import Point, dense_of, is_cost, metrics
from pruning.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(study: str, points: Sequence[Point]) -> "Figure":
    """Draw each metric over the measured speedup, a line per method, bars its spread, dense a star.

    Where nothing was evaluated, the share of parameters that is left.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    keys = [key for key in metrics(points) if is_cost(key)] or metrics(points)
    panels: list[str | None] = [*keys[:4]] or [None]
    bases = " or ".join(sorted({p.basis for p in points}))
    figure = Figure(figsize=(6.4 * len(panels), 4.8), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label in dict.fromkeys(p.label for p in points):
            own = [p for p in points if p.label == label]
            heights = [(run.speedup.reached, _height(run, key)) for p in own for run in p.runs]
            at = sorted((x, y) for x, y in heights if y is not None)
            line = axes.plot(*zip(*at, strict=True) if at else ([], []), marker="o", ms=4)[0]
            line.set_label(label)
            for p in own:
                if key and (centre := p.centre(key)) and (spread := p.spread(key)):
                    axes.errorbar(*centre, yerr=spread, color=line.get_color(), capsize=3, lw=1)
        dense = 1.0 if key is None else dense_of(points, key).get(key)
        if dense is not None:
            axes.plot([1], [dense], "k*", ms=10, label="dense")
            axes.axhline(dense, color="0.8", lw=0.8, zorder=0)
        if key and is_cost(key):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=f"{bases} speedup", ylabel=key or "parameters", title=study)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    return figure


def _height(run: Result, key: str | None) -> Any:
    return run.params.ratio if key is None else run.evaluation.pruned.get(key)
