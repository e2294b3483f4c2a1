"""W&B: the summary of an offline run as W&B's own reader sees it, and nothing that can fail."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from omegaconf import OmegaConf

from pruning import cli
from pruning.results.result import write
from pruning.results.runs import summary
from pruning.results.tracker import Mode, Service, Tracker, has_key, run_id

CONF = Path(__file__).parents[2] / "conf" / "tracker"
SUMMARY = {
    "speedup/target": 1.25,
    "speedup/predicted": 1.31,
    "speedup/measured": 1.247,
    "latency/dense_ms": 812.5,
    "latency/pruned_ms": 651.6,
    "params/total": 101_234_567,
    "params/ratio": 0.7526,
    "eval/quick/text/token_perplexity_512": 31.4159,
    "eval/quick/arc_easy/acc": 0.5,
    "dense/eval/quick/text/token_perplexity_512": 22.0186,
    "dense/eval/quick/arc_easy/acc": 0.5,
}


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def tracker() -> Tracker:
    return Tracker(Service.wandb, "test", None, Mode.auto, timeout=20.0, checkpoint=True)


def group_of(records: str) -> str:
    """Return the group of a run, from the lines of `wandb leet inspect`."""
    found = [json.loads(record) for record in records.splitlines()]
    (run,) = (record["run"] for record in found if record["type"] == "run")
    return run["run_group"]


@pytest.mark.job
def test_an_offline_run_holds_everything(result, tracker, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    result.training = [{"step": 3, "task_loss": 3.5}, {"step": 6, "task_loss": 3.25}]
    result.search = [{"step": 0, "loss": 0.5, "best": 0.5}, {"step": 1, "loss": 0.6, "best": 0.5}]
    result.allocation[2].ranks = {"mlp.up_proj": 96}
    write(result, tmp_path / "result.json")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert tracker.report(result, tmp_path)
    assert "no W&B API key" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    text = subprocess.check_output([*inspect, "--summary", log], text=True)
    found = json.loads(text)
    assert found["state"] == "finished"
    assert found["name"] == found["run_id"] == result.name
    assert found["config"] == result.config
    assert SUMMARY.items() <= found["summary"].items()
    assert (found["summary"]["training/step"], found["summary"]["training/task_loss"]) == (6, 3.25)
    assert (found["summary"]["search/best"], found["summary"]["stages/evaluate_s"]) == (0.5, 80.1)
    assert group_of(subprocess.check_output([*inspect, log], text=True)) == "frontier"
    (table,) = run.glob("files/media/table/per_layer/kept*.json")
    assert json.loads(table.read_text()) == {
        "columns": ["block", "query_heads", "kv_heads", "ffn", "mlp.up_proj"],
        "data": [[0, 9, 3, 1536, None], [1, 0, 0, 1024, None], [2, 6, 2, 0, 96]],
    }


@pytest.mark.job
def test_a_study_is_one_run_with_all_results(result, tracker, tmp_path):
    study = tmp_path / "frontier"
    for target, measured, perplexity in ((1.25, 1.247, 31.4), (1.5, 1.49, 40.5), (2.0, 2.02, 80.0)):
        key = "quick/text/token_perplexity_512"
        other = replace(
            result,
            name=f"smollm2-{target}",
            config=result.config | {"speedup": target},
            speedup=replace(result.speedup, target=target, measured=measured),
            evaluation=replace(result.evaluation, pruned={key: perplexity}),
        )
        write(other, study / other.name / "result.json")
    assert tracker.report_study(study)
    (run,) = (study / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    found = json.loads(subprocess.check_output([*inspect, "--summary", log], text=True))
    assert found["run_id"] == "frontier-frontier"
    assert found["summary"]["speedup/measured"] == 2.02  # the last of three steps
    line = "frontier/quick/text/token_perplexity_512/ziplm"
    assert found["summary"][line] == 80.0
    records = subprocess.check_output([*inspect, log], text=True)
    assert group_of(records) == "frontier"
    found = [json.loads(record) for record in records.splitlines()]
    items = [record["history"]["item"] for record in found if record["type"] == "history"]
    steps = [(item["speedup/measured"], item[line]) for item in items if line in item]
    assert steps == [(1.247, 31.4), (1.49, 40.5), (2.02, 80.0)]
    (table,) = run.glob("files/media/table/frontier_table*.json")
    table = json.loads(table.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["run"], row["speedup/measured"]) for row in rows] == [
        *(("smollm2-1.25", 1.247), ("smollm2-1.5", 1.49), ("smollm2-2.0", 2.02))
    ]


def test_the_summary_has_the_keys_of_the_contract(result):
    found = summary(result)
    assert SUMMARY.items() <= found.items()
    assert "memory/peak_device_gib" not in found  # there was no device


@pytest.mark.parametrize(
    "error", [wandb.errors.CommError("no network"), RuntimeError("odd\nthing")]
)
def test_a_failing_wandb_is_a_warning(result, tracker, tmp_path, monkeypatch, caplog, error):
    def fail(*args, **more):
        raise error

    monkeypatch.setattr(wandb, "init", fail)
    with caplog.at_level(logging.WARNING):
        tracker.report(result, tmp_path)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(error).splitlines()[0] in record.getMessage()


@pytest.mark.job
def test_none_imports_no_wandb(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pruning.results.tracker import *; "
        "Tracker(Service.none, 'p', None, Mode.auto, 1.0, False).report(None, Path('.')); "
        "Tracker(Service.wandb, 'p', None, Mode.disabled, 1.0, False).report(None, Path('.')); "
        "assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_key_is_looked_for_where_wandb_does(monkeypatch, tmp_path, tracker):
    assert not has_key()
    assert tracker._choose_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_key()
    assert tracker._choose_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_key()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracker._choose_mode() == "disabled"


def test_ids_are_what_wandb_accepts():
    assert run_id("smollm2-135m-1.25x-65d9b084") == "smollm2-135m-1.25x-65d9b084"
    assert run_id("a/b:c#d") == "a-b-c-d"
    assert run_id("x" * 100 + "-65d9b084").endswith("x-65d9b084")


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_tracker_is_whole(path):
    config = OmegaConf.load(path)
    assert config.pop("defaults") == ["/schema/tracker/tracker@_here_"]
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Tracker), config))
    assert isinstance(found, Tracker)
    assert found.name == path.stem


@pytest.mark.parametrize("command", ["sync", "dashboard"])
def test_what_needs_an_account_says_so_at_once(command, result, tmp_path, monkeypatch, capsys):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    write(result, tmp_path / "study" / result.name / "result.json")
    assert cli.main([command, str(tmp_path / "study")]) == 1
    said = capsys.readouterr().err
    assert said == "error: W&B has no API key here: run `wandb login`, or set WANDB_API_KEY\n"
