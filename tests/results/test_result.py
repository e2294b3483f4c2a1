"""result.json: the contract, whole or not at all."""

import json
import math
import os
import platform
from dataclasses import replace

import pytest

from pruning.results.points import labels
from pruning.results.result import finished, read, write
from pruning.system import environment as module
from pruning.system.environment import environment, peaks

KEYS = """
schema name study config
speedup.target speedup.predicted speedup.measured speedup.rounds
latency.dense.p50_ms latency.dense.p90_ms latency.dense.n latency.pruned.p50_ms
latency.pruned.p90_ms latency.pruned.n latency.phase latency.batch latency.sequence
params.dense params.pruned params.ratio evaluation.dense evaluation.pruned seconds.total
memory.peak_host_gib memory.peak_device_gib allocation environment
"""


def test_every_key_of_the_contract_is_there(result, tmp_path):
    write(result, tmp_path / "result.json")
    data = json.loads((tmp_path / "result.json").read_text())
    for key in KEYS.split():
        value = data
        for part in key.split("."):
            value = value[part]
    assert data["allocation"][1] == {"block": 1, "query_heads": 0, "kv_heads": 0, "ffn": 1024} | {
        "ranks": {},
        "experts": 0,
    }
    assert data["schema"] == 1


def test_a_result_comes_back_as_it_was_and_leaves_nothing_else(result, tmp_path):
    path = tmp_path / "run" / "result.json"
    write(result, path)
    assert read(path) == result
    assert finished(path.parent)
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_keys_of_a_later_version_are_passed_over(result, tmp_path):
    path = tmp_path / "result.json"
    write(result, path)
    data = json.loads(path.read_text())
    data["new"] = data["speedup"]["new"] = data["allocation"][0]["new"] = 1
    path.write_text(json.dumps(data))
    assert read(path) == result


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_not_taken_for_done(result, tmp_path, share, caplog):
    path = tmp_path / "result.json"
    write(result, path)
    text = path.read_text().rstrip()
    path.write_text(text[: int(share * len(text))])
    assert read(path) is None
    assert not finished(tmp_path)
    assert "is not a result" in caplog.text


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"schema": 1}', '{"schema": 99}', "\x00"])
def test_another_file_is_not_taken_for_done(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    assert read(tmp_path / "result.json") is None


def test_no_file_is_not_done(tmp_path, caplog):
    assert read(tmp_path / "result.json") is None
    assert not caplog.text


def test_a_crash_while_writing_leaves_the_former_result(result, tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write(result, path)

    def crash(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    former, result.name = result.name, "another"
    with pytest.raises(OSError, match="disk full"):
        write(result, path)
    assert read(path).name == former
    assert len(list(tmp_path.iterdir())) == 1


def test_nan_and_infinity_become_null(result, tmp_path):
    result.evaluation.pruned = {"a": math.nan, "b": math.inf, "c": 1.0}
    write(result, tmp_path / "result.json")
    assert "NaN" not in (tmp_path / "result.json").read_text()
    assert read(tmp_path / "result.json").evaluation.pruned == {"a": None, "b": None, "c": 1.0}


def test_the_environment_says_what_matters_and_not_where_or_who():
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"]
    assert found["packages"]["lm_eval"]
    assert found["cores"] >= 1
    assert found["threads"] >= 1
    assert {"cpu", "gpu", "cuda", "platform", "commit", "dirty"} <= set(found)
    text = json.dumps(found)
    assert platform.node() not in text
    assert os.getcwd() not in text
    assert found == environment()  # caches are keyed by it


def test_an_installed_package_has_no_commit(monkeypatch):
    monkeypatch.setattr(module, "__file__", platform.__file__)
    assert module.checkout() == {"commit": None, "dirty": None}


def test_peak_memory_is_in_gib():
    held = b"1" * (200 * 2**20)
    assert 0.2 < peaks()[0] < 64
    assert len(held)


def test_results_from_before_are_read_by_the_names_of_today(result, tmp_path):
    new = result.config | {
        "hardware": {"name": "local", "batch": 1, "sequence_length": 256},
        "calibration": {"sequence_length": 512, "batch": 4},
        "recovery": {"name": "distill", "learning_rate": 0.0001, "path": []},
        "suite": {"batch_size": 8, "questions": {"squad": {"max_length": 384}}},
        "search": {"name": "calibrated", "sequence_length": 128},
        "runtime": {"name": "torch"},
        "task": None,
    }
    old = result.config | {
        "hardware": {"name": "local", "batch": 1, "sequence": 256, "compile": False},
        "calibration": {"sequence": 512, "batch": 4},
        "recovery": {"name": "distill", "rate": 0.0001, "path": []},
        "suite": {"batch": 8, "questions": {"squad": {"sequence": 384}}},
        "search": {"name": "calibrated", "sequence": 128},
        "task": None,
    }
    for name, config in (("old", old), ("new", new)):
        write(replace(result, name=name, config=config), tmp_path / f"{name}.json")
        assert read(tmp_path / f"{name}.json").config == new
    other = json.loads(json.dumps(old))
    other["recovery"]["rate"], other["hardware"]["compile"] = 0.001, True
    write(replace(result, config=other), tmp_path / "other.json")
    runs = [read(tmp_path / f"{name}.json") for name in ("old", "new", "other")]
    same = "ziplm, recovery.learning_rate=0.0001, runtime=torch"
    apart = "ziplm, recovery.learning_rate=0.001, runtime=torch_compile"
    assert labels(runs) == [same, same, apart]
