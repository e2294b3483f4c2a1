"""The report of a study: all results as tables, as plots for papers, and as one page to look at.

python -m pruning report outputs/compare
"""

from pathlib import Path

from pruning.results.charts import pictures
from pruning.results.page.page import page
from pruning.results.points import gather, read_results
from pruning.results.rows import rows_of
from pruning.results.tables import markdown, table
from pruning.system.drawing import png, svg
from pruning.system.files import write_bytes, write_text


def write(study: Path, html: bool = False) -> Path | None:
    """Write frontier.md, .csv, .svg and .png, and kept.svg, of the results in a directory.

    With `html` also frontier.html, which takes about two seconds more. Return the path of
    frontier.md; None where there are no results.
    """
    points = gather(read_results(study))
    if not points:
        return None
    rows = rows_of(points, study)
    if (kept := pictures.allocations(study.name, rows)) is not None:
        write_text(svg(kept), study / "kept.svg")
    write_text(table(points), study / "frontier.csv")
    picture = pictures.frontier(study.name, rows, points)
    write_text(svg(picture), study / "frontier.svg")
    write_bytes(png(picture), study / "frontier.png")
    if html:
        write_text(page(study.name, rows, points), study / "frontier.html")
    write_text(markdown(study.name, points), study / "frontier.md")
    return study / "frontier.md"
