"""The report of a study: all results as tables, as plots for papers, and as one page to look at.

python -m pruning.report outputs/compare
"""

import sys
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


def main(arguments: list[str]) -> int:
    """Write the report of a study and print its table."""
    if len(arguments) != 1:
        print("usage: python -m pruning.report outputs/<study>", file=sys.stderr)
        return 2
    written = write(Path(arguments[0]).resolve(), html=True)
    if written is None:
        print(
            f"error: {arguments[0]} holds no result.json of a finished job; run some first",
            file=sys.stderr,
        )
        return 1
    print(written.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
