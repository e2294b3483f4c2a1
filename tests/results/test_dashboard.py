"""The W&B workspace and report as W&B's own package would send it; nothing is sent."""

import json
from dataclasses import replace

import pytest

from pruning import cli
from pruning.results.dashboard import panels, report, workspace

pytest.importorskip("wandb_workspaces", reason="the extra dashboard")
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")


def test_it_shows_quality_over_speed_what_was_kept_and_costs(result):
    other = replace(result, seconds={"levels": 3.0})
    made = workspace("frontier", [result, other], "me", "pruning")
    spec = json.loads(made._to_model().model_dump_json())["spec"]
    sections = spec["section"]["panel_bank_config"]["sections"]
    of = {section["name"]: [panel["config"] for panel in section["panels"]] for section in sections}
    assert {(chart["x_axis"], chart["y_axis"]) for chart in of["Frontier"]} == {
        ("summary:speedup/measured", f"summary:eval/{metric}")
        for metric in ("quick/arc_easy/acc", "quick/text/token_perplexity_512")
    }
    log = {chart["y_axis"]: chart["y_axis_log_scale"] for chart in of["Frontier"]}
    assert log["summary:eval/quick/text/token_perplexity_512"]
    assert not log["summary:eval/quick/arc_easy/acc"]
    assert "per_layer/kept" in json.dumps(of["What was kept of each block"])
    assert len(of["Cost of each stage, seconds"]) == 4  # load, evaluate, total; levels
    (runs,) = spec["section"]["run_sets"]
    (group,) = runs["filters"]["filters"]
    assert (group["key"]["name"], group["value"]) == ("group", "frontier")


def test_the_report_has_the_same_panels(result):
    spec = json.loads(report("frontier", [result], "me", "pruning")._to_model().model_dump_json())
    blocks = spec["spec"]["blocks"]
    heads = [b["children"][0]["text"] for b in blocks if b["type"] == "heading"]
    assert heads == list(panels([result]))
    grids = [b for b in blocks if b["type"] == "panel-grid"]
    counts = [len(g["metadata"]["panel_bank_section_config"]["panels"]) for g in grids]
    assert counts == [len(of) for of in panels([result]).values()]
    assert '"frontier"' in json.dumps(grids[0]["metadata"]["run_sets"])


def test_a_study_without_results_is_said(tmp_path, capsys):
    assert cli.main(["dashboard", str(tmp_path)]) == 1
    assert "holds no result.json" in capsys.readouterr().err
