"""What the models of a study kept of each block, drawn: a row per model, a column per block."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning.system.drawing import svg

PARTS = ("attention", "ffn")


def units(path: Path) -> dict[str, dict[int, tuple[int, int]]]:
    """Return by part and block how many units are kept, and of how many, from an allocation.json.

    Parts are `attention` (query heads), `ffn` (channels), and single projections (ranks).
    """
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for name, of in json.loads(path.read_text()).items():
        group, _, rest = name.partition(".")
        where, _, part = rest.partition(".")
        if group == "block":
            found.setdefault(part, {})[int(where)] = (len(of["keep"]), of["of"])
    return {part: dict(sorted(blocks.items())) for part, blocks in found.items()}


def shares(path: Path) -> dict[str, list[float]]:
    """Return by part the share of its units that every block keeps, from an allocation.json.

    Parts that the method does not cut as a whole, such as single projections, are left out.
    """
    found = units(path)
    return {p: [kept / of for kept, of in found[p].values()] for p in PARTS if p in found}


def draw(title: str, rows: Sequence[tuple[str, dict[str, list[float]]]]) -> str | None:
    """Return an SVG of (label, shares) per model, dark where all is kept; None without any."""
    from matplotlib.figure import Figure

    rows = [(label, of) for label, of in rows if set(of) == set(PARTS)]
    blocks = {len(of[part]) for _, of in rows for part in PARTS}
    if len(blocks) != 1:  # none, or models of different depths
        return None
    figure = Figure(figsize=(11, 1.4 + 0.28 * len(rows)), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    for axes, part, title_of in zip(panels, PARTS, ("query heads", "FFN channels"), strict=True):
        image = axes.imshow(
            [of[part] for _, of in rows], cmap="Blues", vmin=0, vmax=1, aspect="auto"
        )
        axes.set(xlabel="block", title=title_of)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize="small")
    figure.colorbar(image, ax=panels, label="share kept")
    figure.suptitle(title)
    return svg(figure, title)
