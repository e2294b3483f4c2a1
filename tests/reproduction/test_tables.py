"""Published tables: every number has a source, every recipe composes, ours are added whole."""

import json
import os
import re
import socket
from dataclasses import asdict, replace
from hashlib import sha256

import pytest
import torch

from pruning import cli
from pruning.composition import compose
from pruning.evaluation.parts import LmEvalTask
from pruning.job.memory import memory
from pruning.latency.cost_models import Proxy
from pruning.methods.blocks import Blocks, removable
from pruning.models.sites import sites
from pruning.reproduction import tables
from pruning.reproduction.needs import GIB, _skeleton, needs
from pruning.reproduction.page import page, summary
from pruning.reproduction.tables import add, load, names
from pruning.results.result import Evaluation
from pruning.results.result import write as write_result
from pruning.system.cache import Cache
from tests.helpers.jobs import ROOT
from tests.results.conftest import result as result  # the fixture

NAMES = names()
JOBS = [(name, row.name) for name in NAMES for row in load(name).jobs()]


def test_the_tables_of_the_literature_are_there():
    assert {"slimgpt-llama7b", "flap-llama7b", "ziplm-gpt2", "tyr-llama2-70b"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_published_cell_is_without_a_source(name):
    table = load(name)
    for row in table.rows:
        for published in row.published:
            source = table.sources[published.source]
            assert source.title
            assert source.read
            assert published.cells
    cited = {each.source for row in table.rows for each in row.published}
    assert cited | {note.source for note in table.notes} == set(table.sources)
    assert table.differences


@pytest.mark.parametrize(("name", "row"), JOBS)
def test_every_recipe_composes_and_measures_what_the_columns_have(name, row):
    table = load(name)
    (given,) = [one for one in table.jobs() if one.name == row]
    job = compose(table.words(given))
    assert job.study == table.experiment
    assert table.model["model_type"] in ("llama", "gpt2", "bert", "qwen3")
    suite = job.suite.for_task(job.task)
    wanted = {key for published in given.published for key in published.cells}
    metrics = {key: table.columns[key].metric for key in wanted}
    for key, metric in metrics.items():
        if metric is None or metric == tables.SPEEDUP:
            continue
        suite_name, part, value = metric.split("/")
        assert suite_name == suite.name
        parts = {name: one for _, name, one in suite.parts()}
        if part == "average":
            assert suite.average
            assert set(suite.average) <= set(parts)
        else:
            assert part in parts, key
        if part == "text":
            assert int(value.rpartition("_")[2]) in suite.perplexity.window
        elif isinstance(parts.get(part), LmEvalTask):
            assert value in ("acc", "acc_norm")


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Copy the tables, and take the copies for them."""
    for file in tables.FOLDER.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    return tmp_path


def written(tmp_path, monkeypatch, text: str):
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    (tmp_path / "made.yaml").write_text(text)
    return load("made")


MADE = """title: t
experiment: ziplm_gpt2
model: {{model_type: gpt2}}
columns: {{ppl: {{title: perplexity, metric: wikitext/text/token_perplexity_1024}}}}
sources: {{paper: {{title: paper, read: {read}}}}}
rows: [{{name: dense, published: [{{source: {source}, cells: {{{column}: 1}}}}]}}]
differences: []
"""
RIGHT = {"read": "the paper", "source": "paper", "column": "ppl"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"read": "recalled"}, "numbers from memory are not published ones"),
        ({"read": "'`[recalled:M]`'"}, "numbers from memory are not published ones"),
        ({"read": "''"}, "say where they were read"),
        ({"source": "nowhere"}, "made.yaml: source of 'dense': 'nowhere' is none of paper"),
        ({"column": "speed"}, "made.yaml: column of 'dense': 'speed' is none of ppl"),
    ],
)
def test_a_cell_without_a_source_that_was_read_is_refused(wrong, said, tmp_path, monkeypatch):
    assert written(tmp_path, monkeypatch, MADE.format(**RIGHT)).rows[0].published[0].cells
    with pytest.raises(ValueError, match=re.escape(said)):
        written(tmp_path, monkeypatch, MADE.format(**RIGHT | wrong))


def test_what_a_table_has_no_field_for_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    (tmp_path / "made.yaml").write_text(MADE.format(**RIGHT).replace("source: paper", "from: x"))
    assert cli.main(["reproduce", "made"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "from" in line


def test_the_page_is_as_the_tables_are():
    assert (ROOT / "docs" / "reproduction.md").read_text() == page(), "stale: run `make docs`"


def test_the_commands_need_no_network(monkeypatch, capsys):
    def refuse(self, address):
        raise AssertionError(f"tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(tables, "names", lambda: ["slimgpt-llama7b", "ziplm-gpt2"])
    assert cli.main(["reproduce"]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"^\| ziplm-gpt2 .* \d of 1 jobs ", listed, re.M)
    assert re.search(r"slimgpt-llama7b .* \d+ of 4 jobs \| +\d+ \| +\d+ \| +\d\.\d+ \|", listed)
    assert cli.main(["reproduce", "slimgpt-llama7b"]) == 0
    said = capsys.readouterr().out
    assert "    python launch.py experiment=slimgpt_llama7b method.ratio=0.2 recovery=lora" in said
    assert re.search(r"\| 20 %, LoRA +\| SlimGPT +\| +16.68 \| +65.07 \|", said)
    assert "arXiv:2412.18110" in said
    assert "Differences of protocol" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there is no table 'nothing': choose one of depth-llama2-7b, "),
        (["ziplm-gpt2", "--add", "none.json"], "none.json is no result.json of a finished job"),
        (["ziplm-gpt2", "--add", "{job}", "--row", "9x"], "--row '9x' is no row of ziplm-gpt2"),
        (["ziplm-gpt2", "--add", "{job}"], "is a job of no row of ziplm-gpt2; the nearest, '1.5x'"),
        (["flap-llama7b", "--add", "{job}", "--row", "FLAP, 20 %"], "has none of the metrics of f"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, result, copied, capsys):
    config = asdict(compose(["speedup=1.5", "hardware.path=x", "hardware=file"]))
    write_result(replace(result, config=json.loads(json.dumps(config))), copied / "result.json")
    words = [word.format(job=copied / "result.json") for word in arguments]
    assert cli.main(["reproduce", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_add_without_a_table_is_refused(capsys):
    assert cli.main(["reproduce", "--add", "result.json"]) == 2
    assert "need the NAME" in capsys.readouterr().err


def finished(result, path, words, pruned, **changed):
    """Write the result of a job of such a command."""
    config = json.loads(json.dumps(asdict(compose(words)))) | changed
    numbers = Evaluation(dict.fromkeys(pruned, 12.625), pruned)
    write_result(replace(result, config=config, evaluation=numbers), path)
    return path


METRICS = {"papers/text/token_perplexity_128": 38.1234, "papers/average/acc_norm": 0.51987}
WORDS = ["experiment=slimgpt_llama7b", "method.ratio=0.5"]


def test_our_cells_are_added_with_what_they_came_from(result, copied, capsys):
    job = finished(result, copied / "result.json", WORDS, METRICS, study="mine", cache="/other")
    before = (copied / "slimgpt-llama7b.yaml").read_text()
    assert cli.main(["reproduce", "slimgpt-llama7b", "--add", str(job)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("added to row '50 %, one-shot' of slimgpt-llama7b")
    after = (copied / "slimgpt-llama7b.yaml").read_text()
    assert after.startswith(before)
    table = load("slimgpt-llama7b")
    ours, dense = table.ours["50 %, one-shot"], table.ours["dense"]
    assert set(table.ours) == {"50 %, one-shot", "dense"}
    assert ours.cells == {"ppl": 38.12, "mean": 51.99}
    assert dense.cells["ppl"] == 12.62
    assert ours.sha256 == dense.sha256 == sha256(job.read_bytes()).hexdigest()
    assert ours.versions["torch"] == result.environment["packages"]["torch"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", ours.date)
    assert ours.differs == []
    assert f"result {ours.sha256[:12]} of {result.name} | " in said
    assert "Not run: 3 of 4 jobs." in said
    assert "1 of 4 jobs" in summary([table])

    finished(result, job, WORDS, METRICS | {"papers/text/token_perplexity_128": 30.0})
    add(table, job)
    assert load("slimgpt-llama7b").ours["50 %, one-shot"].cells["ppl"] == 30.0
    assert (copied / "slimgpt-llama7b.yaml").read_text().startswith(before)


def test_a_job_that_differs_says_in_what_but_not_where_its_files_are(result, copied):
    words = [*WORDS, "suite.limit=100", "model.path=/home/me/llama"]
    job, table = finished(result, copied / "result.json", words, METRICS), load("slimgpt-llama7b")
    with pytest.raises(ValueError, match=r"has other values than .*suite\.limit.*: give --row"):
        add(table, job)
    add(table, job, "50 %, one-shot")
    assert set(load(table.name).ours["dense"].differs) == {"suite.limit=100", "model.path=llama"}
    assert "/home" not in (copied / "slimgpt-llama7b.yaml").read_text()


def test_a_table_is_written_whole_or_not_at_all(result, copied, monkeypatch):
    job, table = finished(result, copied / "result.json", WORDS, METRICS), load("slimgpt-llama7b")
    before = (copied / "slimgpt-llama7b.yaml").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        add(table, job)
    assert (copied / "slimgpt-llama7b.yaml").read_text() == before
    assert not [path for path in copied.iterdir() if path.name.startswith(".")]


def test_needs_are_those_of_the_largest_job():
    table = load("slimgpt-llama7b")
    (job, *_), took = [compose(table.words(row)) for row in table.jobs()], needs(table)
    model = _skeleton(table.model, job)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == 6_738_415_616
    assert took.disk * GIB == 2 * 2 * parameters  # neither moments nor training checkpoints
    lora = (2 + 4) * parameters  # the dense weights, and in float32 those that adapters stand by
    assert took.memory * GIB == lora > memory(model, 524288) > 2 * 2 * parameters
    training = 3 * 300 * 2 * 256  # of each of the two rows with LoRA; the text passes three times
    tokens = 4 * 3 * 524288 + 2 * training
    assert took.hours == pytest.approx(2 * parameters * tokens / (0.4 * 9.89e14) / 3600)
    halves = 32 * 4 * (4096**2 + 11008**2) / 2  # of a symmetric matrix for each site, in float32
    rest = needs(load("flap-llama7b")).disk * GIB - 2 * 2 * parameters
    assert halves < rest < 1.03 * halves
    trained = needs(load("ziplm-gpt2"))
    assert trained.disk > trained.memory > 2  # its optimizer, in memory and in two checkpoints


@pytest.mark.parametrize(("name", "count"), [("depth-llama3-8b", 5), ("depth-llama2-7b", 8)])
def test_as_many_blocks_leave_as_the_table_says(name, count, tmp_path):
    table = load(name)
    job = compose(table.words(table.jobs()[-1]))
    model = _skeleton(table.model, job)
    assert isinstance(job.hardware, Proxy)
    costs = job.hardware.profile(model, sites(model), Cache(tmp_path))
    left = Blocks(model, removable(model), costs).choose(costs.budget(job.speedup))
    assert left is not None
    assert len({site.block for site, shape in left.items() if not shape.units}) == count
    assert next(model.parameters()).device == torch.device("meta")
