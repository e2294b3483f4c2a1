"""The W&B workspace and report of a study: what to look at, as code."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pruning.results.report import is_metric
from pruning.results.result import Result

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report
    from wandb_workspaces.workspaces import Workspace


def panels(results: Sequence[Result]) -> dict[str, list[Any]]:
    """Return by section: frontier, what was kept, promised and measured speed, costs, curves."""
    import wandb_workspaces.reports.v2 as wr

    metrics = dict.fromkeys(
        key for result in results for key in result.evaluation.pruned if is_metric(key)
    )
    stages = dict.fromkeys(stage for result in results for stage in result.seconds)
    speed = wr.SummaryMetric("speedup/measured")
    return {
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
            wr.LinePlot(title="recovery", x="recovery/step", y=["recovery/loss"]),
        ],
    }


def workspace(study: str, results: Sequence[Result], entity: str, project: str) -> "Workspace":
    """Return a workspace of the runs of a study, grouped by method."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{study}: frontier",
        sections=[
            ws.Section(name=name, panels=charts, is_open=index == 0)
            for index, (name, charts) in enumerate(panels(results).items())
        ],
        settings=ws.WorkspaceSettings(x_axis="speedup/measured"),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == study),
            groupby=[ws.Config("method.name")],
        ),
    )


def report(study: str, results: Sequence[Result], entity: str, project: str) -> "Report":
    """Return a report: the same panels, a heading each."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2.interface import Report, Runset

    runs = Runset(  # of the report's own project
        name=study,
        filters=f"Metric('Group') == '{study}'",
        groupby=["config.method.name"],
    )
    blocks: list[Any] = []
    for name, charts in panels(results).items():
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=charts)]
    models = ", ".join(dict.fromkeys(str(r.config["model"]["name"]) for r in results))
    about = f"{len(results)} results of {models}; quality over speedup, and what it cost."
    return Report(
        entity=entity,
        project=project,
        title=f"{study}: frontier",
        description=about,
        blocks=blocks,
    )
