"""Build the W&B workspace of a study: what to look at, as code.

    python -m pruning.dashboard outputs/frontier [entity=me] [project=pruning]

Needs the extra `dashboard`, and a W&B account to save the workspace in.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.experiment import compose
from pruning.results.points import results_of
from pruning.results.report import is_metric
from pruning.results.result import Result

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def workspace(study: str, results: Sequence[Result], entity: str, project: str) -> "Workspace":
    """Return a workspace: frontier, what was kept, promised and measured speed, costs."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    metrics = dict.fromkeys(
        key for result in results for key in result.evaluation.pruned if is_metric(key)
    )
    stages = dict.fromkeys(stage for result in results for stage in result.seconds)
    speed = wr.SummaryMetric("speedup/measured")
    sections = {
        "Frontier": [
            wr.ScatterPlot(
                title=metric,
                x=speed,
                y=wr.SummaryMetric(f"eval/{metric}"),
                log_y="perplexity" in metric,
            )
            for metric in metrics
        ],
        "What was kept of each block": [wr.WeavePanelSummaryTable(table_name="per_layer/kept")],
        "Target, predicted, measured": [
            wr.BarPlot(title=f"speedup {kind}", metrics=[wr.SummaryMetric(f"speedup/{kind}")])
            for kind in ("target", "predicted", "measured")
        ],
        "Cost of each stage, seconds": [
            wr.BarPlot(title=stage, metrics=[wr.SummaryMetric(f"seconds/{stage}")])
            for stage in stages
        ],
        "Curves": [
            wr.LinePlot(title="search", x="search/step", y=["search/best"]),
            wr.LinePlot(title="training", x="training/step", y=["training/loss"]),
        ],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{study}: frontier",
        sections=[
            ws.Section(name=name, panels=panels, is_open=index == 0)
            for index, (name, panels) in enumerate(sections.items())
        ],
        settings=ws.WorkspaceSettings(x_axis="speedup/measured"),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == study),
            groupby=[ws.Config("method.name")],
        ),
    )


def main(arguments: list[str]) -> int:
    """Save the workspace of a study, and print where it is."""
    if not arguments or "=" in arguments[0]:
        sys.exit("usage: python -m pruning.dashboard outputs/<study> [entity=me] [project=name]")
    study = Path(arguments[0])
    tracker = compose(["tracker=wandb", *(f"tracker.{given}" for given in arguments[1:])]).tracker
    results = results_of(study)
    if not results:
        sys.exit(f"error: {study} holds no result.json of a finished job; run some first")
    try:
        made = workspace(study.name, results, tracker.entity or "", tracker.project)
    except ImportError:
        sys.exit("error: install the extra first: pip install 'inference-aware-pruning[dashboard]'")
    print(made.save().url)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
