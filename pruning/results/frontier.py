"""The report of a study: all results as tables, as plots for papers, and as one page to look at.

python -m pruning report outputs/compare
"""

from pathlib import Path

from pruning.results import kept
from pruning.results.page.page import page
from pruning.results.plot import plot
from pruning.results.points import gather, results_of
from pruning.results.result import times
from pruning.results.tables import markdown, table
from pruning.system.drawing import png, svg
from pruning.system.files import write_bytes, write_text


def write(study: Path, html: bool = False) -> Path | None:
    """Write frontier.md, .csv, .svg and .png, and kept.svg, of the results in a directory.

    With `html` also frontier.html, which takes about two seconds more. Return the path of
    frontier.md; None where there are no results.
    """
    points = gather(results_of(study))
    if not points:
        return None
    runs = [(p, study / run.name / "allocation.json") for p in points for run in p.runs]
    rows = [(f"{times(p.target)}, {p.label}", kept.shares(at)) for p, at in runs if at.exists()]
    if picture := kept.draw(study.name, sorted(rows, key=lambda row: row[0].partition(", ")[::-1])):
        write_text(picture, study / "kept.svg")
    write_text(table(points), study / "frontier.csv")
    figure = plot(study.name, points)
    write_text(svg(figure, study.name), study / "frontier.svg")
    write_bytes(png(figure), study / "frontier.png")
    if html:
        write_text(page(study, points), study / "frontier.html")
    write_text(markdown(study.name, points), study / "frontier.md")
    return study / "frontier.md"
