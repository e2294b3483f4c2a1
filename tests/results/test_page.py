"""The page of a study: what it holds; test_browser.py opens it."""

import base64
import hashlib
import json
from dataclasses import replace

import lxml.html
import pytest

from pruning.results import frontier
from pruning.results.result import Evaluation
from pruning.results.result import write as write_result

LONG, ACC = "wiki/text/token_perplexity_2048", "quick/arc_easy/acc"


@pytest.fixture
def page(varied):
    frontier.write(varied, html=True)
    return lxml.html.parse(varied / "frontier.html").getroot()


def texts(page, path: str) -> list[str]:
    return [element.text_content() for element in page.xpath(path)]


def rows_by_name(page) -> dict[str, dict[str, str]]:
    """Return the table's texts by run name and head."""
    heads = texts(page, "//*[@id='results']/thead//th")
    return {
        row.get("data-name"): dict(zip(heads, (cell.text_content() for cell in row), strict=True))
        for row in page.xpath("//*[@id='results']/tbody/tr")
    }


def test_every_result_has_a_row_with_its_numbers_and_its_command(varied, page):
    found = rows_by_name(page)
    assert set(found) == {path.parent.name for path in varied.glob("*/result.json")}
    row = found["ziplm-1.5-1"]
    assert row["result"] == "ziplm, 1.500x, seed 1ziplm-1.5-1"
    assert (row["target"], row["predicted"], row["speedup"]) == ("1.500x", "1.510x", "1.510x")
    assert (row[LONG], row[ACC]) == ("44.00", "0.340 ± 0.030")
    assert row["command"] == "showpython launch.py method=ziplm speedup=1.5 seed=1"
    assert found["depth-1.5-0"][LONG] == "not finite"
    assert found["magnitude-2.0-0"]["speedup"] == "2.000x (estimated)"
    assert found["magnitude-2.0-0"]["command"] == "not recorded: see config.yaml"


def test_charts_hold_points_means_and_spreads(page):
    charts = json.loads(page.get_element_by_id("data").text)["charts"]
    assert set(charts) == {element.get("id") for element in page.xpath("//*[@class='chart']")}
    layers = [part["data"]["values"] for part in charts["quality-0"]["layer"]]
    _, means, spans, dots, dense, _ = layers
    assert sorted(dot["value"] for dot in dots) == [40, 44, 90, 95, 200]
    assert "Not finite: depth, 1.500x" in texts(page, "//*[@class='panels']/div")[0]
    assert {(m["speedup"], m["value"]) for m in means} >= {(1.5, 42), (2.02, 90)}
    assert [(s["low"], s["high"]) for s in spans] == [(40, 44)]  # perplexities have no other error
    assert [(d["speedup"], d["value"]) for d in dense] == [(1, 20)]
    assert "measured" in charts["quality-0"]["layer"][3]["encoding"]["x"]["title"]
    assert "estimated" in charts["quality-0"]["layer"][3]["encoding"]["x"]["title"]
    bars = {
        (s["speedup"]): (s["low"], s["high"])
        for s in charts["quality-1"]["layer"][2]["data"]["values"]
    }
    assert bars[1.5] == (pytest.approx(0.34), pytest.approx(0.5))  # half the range of two seeds
    assert bars[2.02] == (pytest.approx(0.32), pytest.approx(0.38))  # a standard error
    assert texts(page, "//h3")[2:] == ["query heads", "FFN channels", "rank of mlp.up_proj"]
    cells = charts["kept-0"]["data"]["values"]
    assert len(cells) == 6
    assert (cells[0]["share"], cells[0]["text"]) == ([0, 1], ["0 of 8", "8 of 8"])
    stages = charts["seconds"]["data"]["values"]
    of_one = {s["stage"]: s["seconds"] for s in stages if s["name"] == stages[0]["name"]}
    assert of_one == {"load": 2.5, "evaluate": 80.1, "other": pytest.approx(230.1)}


def test_nothing_from_elsewhere_and_no_other_script(page):
    assert page.xpath("//@src | //@href | //link | //iframe | //img") == []
    _, *scripts = page.xpath("//script")
    hashes = [
        base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
        for script in scripts
    ]
    (meta,) = page.xpath("//meta[@http-equiv]")
    policy = dict(part.split(" ", 1) for part in meta.get("content").split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == " ".join(f"'sha256-{one}'" for one in hashes)
    assert len(scripts) == 2


def test_the_same_results_give_the_same_page(varied):
    frontier.write(varied, html=True)
    first = (varied / "frontier.html").read_bytes()
    assert len(first) < 2e6
    frontier.write(varied, html=True)
    assert (varied / "frontier.html").read_bytes() == first


def test_environments_that_differ_are_flagged(varied, page):
    found = {name: row["environment differs"] for name, row in rows_by_name(page).items()}
    (odd,) = (name for name in found if "script" in name)
    assert found.pop(odd) == "packages.torch, threads"
    assert set(found.values()) == {""}
    assert "64: </script>" not in (varied / "frontier.html").read_text()
    table = texts(page, "//section[last()]//table")[0]
    assert "threads" in table
    assert "64" in table


def test_pareto_marks_are_those_of_the_first_metric(page):
    marked = {name for name, row in rows_by_name(page).items() if row["Pareto"]}
    assert marked == {"ziplm-1.5-0", "ziplm-1.5-1", "ziplm-2.0-0", "magnitude-2.0-0"}
    assert json.loads(page.get_element_by_id("data").text)["pareto"][LONG] == sorted(marked)
    assert texts(page, "//*[@id='metric']/option") == [LONG, ACC]


def test_a_study_without_metrics_and_allocations(result, tmp_path):
    run = replace(result, evaluation=Evaluation({}, {}))
    write_result(run, tmp_path / "bare" / "one" / "result.json")
    frontier.write(tmp_path / "bare", html=True)
    page = lxml.html.parse(tmp_path / "bare" / "frontier.html").getroot()
    assert len(rows_by_name(page)) == 1
    assert "Nothing was evaluated" in page.text_content()
    assert "same environment" in page.text_content()


def test_what_is_counted_is_never_said_to_be_a_time(result, tmp_path):
    counted = replace(
        result,
        latency=replace(result.latency, unit="parameters"),
        speedup=replace(result.speedup, measured=None, basis="counted"),
    )
    write_result(counted, tmp_path / "study" / result.name / "result.json")
    frontier.write(tmp_path / "study", html=True)
    page = (tmp_path / "study" / "frontier.html").read_text()
    assert "speedups counted in parameters," in page
    assert "estimated" not in (tmp_path / "study" / "frontier.md").read_text()
    assert "(counted)" in (tmp_path / "study" / "frontier.md").read_text()
