"""The frontier: runs into points, points into a table and a plot."""

import csv
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from pruning import cli
from pruning.results import frontier
from pruning.results.points import labels
from pruning.results.result import Evaluation, Speedup
from pruning.results.result import write as write_result

LONG, SHORT = "wiki/text/token_perplexity_2048", "wiki/text/token_perplexity_128"


@pytest.fixture
def study(result, tmp_path):
    """Write a study of four runs: two seeds of ziplm, one of depth, one that missed its target."""

    def add(method: str, seed: int, target: float, measured: float, long, short) -> None:
        name = f"{method}-{target}-{seed}"
        config = {"model": {"name": "m"}, "method": {"name": method}, "seed": seed}
        run = replace(
            result,
            name=name,
            config=config | {"speedup": target, "search": {"name": f"of {method}"}},
            speedup=Speedup(target, target, measured, []),
            evaluation=Evaluation({LONG: 20.0, SHORT: 30.0}, {LONG: long, SHORT: short}),
        )
        write_result(run, tmp_path / "study" / name / "result.json")

    add("ziplm", 0, 1.5, 1.49, 40.0, 60.0)
    add("ziplm", 1, 1.5, 1.51, 44.0, 61.0)
    add("depth", 0, 1.5, 1.52, 90.0, 50.0)
    add("lucky", 0, 1.5, 1.30, 25.0, 35.0)  # too slow to be compared
    return tmp_path / "study"


def test_seeds_become_a_mean_and_a_spread(study):
    text = frontier.write(study).read_text()
    rows = [line for line in text.splitlines() if line.startswith("| 1.500x")]
    assert rows == [
        "| 1.500x | lucky | 1.300x † | 25.00 | 35.00 | 75.3% | 1 |",
        "| 1.500x | ziplm | 1.500x | **42.00 ± 2** | 60.50 ± 0.5 | 75.3% | 2 |",
        "| 1.500x | depth | 1.520x | 90.00 | **50.00** | 75.3% | 1 |",
    ]
    assert f"- 1.500x, {LONG}: ziplm (42.00 ± 2)" in text
    assert f"- 1.500x, {SHORT}: depth (50.00)" in text  # a baseline that wins is named
    assert f"- {LONG}: 20.00" in text


def test_the_csv_has_every_run(study):
    frontier.write(study)
    rows = list(csv.DictReader((study / "frontier.csv").read_text().splitlines()))
    assert {(row["label"], row["seed"]) for row in rows} == {
        ("ziplm", "0"),
        ("ziplm", "1"),
        ("depth", "0"),
        ("lucky", "0"),
    }
    assert {row[f"dense {LONG}"] for row in rows} == {"20.0"}
    assert sorted(float(row[LONG]) for row in rows) == [25, 40, 44, 90]


def test_the_plot_is_an_svg_of_these_numbers_and_the_same_each_time(study):
    frontier.write(study)
    first = (study / "frontier.svg").read_text()
    ET.fromstring(first)
    frontier.write(study)
    assert (study / "frontier.svg").read_text() == first
    assert (study / "frontier.png").read_bytes().startswith(b"\x89PNG")
    path = study / "ziplm-1.5-0" / "result.json"
    run = json.loads(path.read_text())
    run["evaluation"]["pruned"][LONG] = 80.0
    path.write_text(json.dumps(run))
    frontier.write(study)
    assert (study / "frontier.svg").read_text() != first


def test_labels_say_what_differs(result):
    def named(**config):
        groups = {"model": {"name": "m"}, "method": {"name": "ziplm"}, "search": {"name": "dp"}}
        return replace(result, config=groups | {"seed": 0} | config)

    assert labels([named(), named(seed=1)]) == ["ziplm", "ziplm"]
    of_search = named(search={"name": "uniform", "steps": 3})
    assert labels([named(), of_search]) == ["ziplm, search=dp", "ziplm, search=uniform"]
    of_steps = [named(search={"name": "dp", "steps": n}) for n in (3, 9)]
    assert labels(of_steps) == ["ziplm, search.steps=3", "ziplm, search.steps=9"]
    other = named(method={"name": "depth"}, search={"name": "none"})
    assert labels([named(), other]) == ["ziplm", "depth"]
    newer = named(suite={"name": "glue", "seed": None})
    assert labels([newer, named(suite={"name": "glue"})]) == ["ziplm", "ziplm"]
    of_model = named(model={"name": "n"})
    assert labels([named(), of_model]) == ["ziplm, model=m", "ziplm, model=n"]


def test_tasks_become_one_row_with_glues_average(result, tmp_path):
    """Per task the mean of its metrics, then the mean over tasks; sst2 in two seeds."""

    def add(method: str, task: str, seed: int, metrics: dict[str, float]) -> None:
        options = {"name": task, "epochs": 3 if task == "sst2" else 9, "seed": seed}
        config = {"model": {"name": "m"}, "method": {"name": method}, "seed": seed}
        pruned = {f"glue/{task}/{key}": value for key, value in metrics.items()}
        dense = {key: 0.9 for key in pruned} | {f"glue/{task}/accuracy_chance": 0.5}
        run = replace(
            result,
            config=config | {"task": options, "suite": {"name": "glue"}},
            speedup=Speedup(2.0, 2.0, 2.0, []),
            evaluation=Evaluation(dense, pruned),
        )
        write_result(run, tmp_path / "glue" / f"{method}-{task}-{seed}" / "result.json")

    add("ziplm", "sst2", 0, {"accuracy": 0.9, "accuracy_stderr": 0.01})
    add("ziplm", "sst2", 1, {"accuracy": 0.8, "accuracy_stderr": 0.01})
    add("ziplm", "mrpc", 0, {"accuracy": 0.7, "f1": 0.8})
    add("depth", "mrpc", 0, {"accuracy": 0.6, "f1": 0.7})
    text = frontier.write(tmp_path / "glue").read_text()
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    keys = ["mrpc/accuracy (chance 0.500)", "mrpc/f1", "sst2/accuracy (chance 0.500)"]
    assert all(key in head for key in keys)
    assert head.endswith("| average of tasks | parameters | runs |")
    cells = {row.split(" | ")[1]: row for row in rows}
    assert set(cells) == {"ziplm", "depth"}
    assert "| 0.800 | 75.3% | 3 |" in cells["ziplm"]  # (0.85 + 0.75) / 2
    assert "0.850 ± 0.05" in cells["ziplm"]
    assert "|  |  | 75.3% | 1 |" in cells["depth"]  # it has no sst2, and so no average
    assert "- glue/sst2/accuracy: 0.900" in text


def test_nothing_finite_and_nothing_there(study, tmp_path, result):
    path = study / "depth-1.5-0" / "result.json"
    run = json.loads(path.read_text())
    run["evaluation"]["pruned"][LONG] = None
    path.write_text(json.dumps(run))
    assert "| depth | 1.520x | not finite | **50.00** |" in frontier.write(study).read_text()
    bare = replace(result, evaluation=Evaluation({}, {}))
    write_result(bare, tmp_path / "bare" / "one" / "result.json")
    assert "75.3%" in frontier.write(tmp_path / "bare").read_text()
    (tmp_path / "empty").mkdir()
    assert frontier.write(tmp_path / "empty") is None


@pytest.mark.job
def test_the_command_line(study, capsys, tmp_path):
    assert cli.main(["report", str(study)]) == 0
    assert capsys.readouterr().out.startswith("# study\n")
    assert cli.main(["report"]) == 2
    assert "python -m pruning report" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "none")]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("none is no directory: give the directory of jobs, outputs/<study>")
