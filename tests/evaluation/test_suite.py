"""Suites: their keys, agreement with lm-eval's own way, data without a hub, plain errors."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import lm_eval
import pytest
import yaml
from omegaconf import OmegaConf

from pruning.calibration.text import Text
from pruning.evaluation.perplexity import token_perplexity
from pruning.evaluation.suite import Perplexity, Suite, Task
from pruning.evaluation.tasks import TASKS, metric_name
from pruning.results.cache import Cache

CONF = Path(__file__).parents[2] / "conf" / "suite"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def suite(tasks: dict[str, Task], **more) -> Suite:
    settings = {"perplexity": None, "labelled": {}, "limit": None, "batch": 3} | more
    return Suite(name="tiny", tasks=tasks, **settings)


@pytest.mark.parametrize("limit", [None, 7])
def test_accuracy_is_lm_evals_own_on_the_saved_model(
    model, tokenizer, documents, tmp_path, no_network, limit
):
    ours = suite({"arc_easy": Task(path=str(documents))}, limit=limit).evaluate(
        model, tokenizer, Cache(tmp_path / "cache")
    )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    definition = {
        "include": str(TASKS / "arc" / "arc_easy.yaml"),
        "task": "arc_easy",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(documents)}},
        "training_split": None,
        "validation_split": None,
    }
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "arc_easy.yaml").write_text(yaml.safe_dump(definition))
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tmp_path / 'model'}",
        tasks=["arc_easy"],
        batch_size=5,
        limit=limit,
        device="cpu",
        bootstrap_iters=10,
        task_manager=lm_eval.tasks.TaskManager(
            include_path=str(tmp_path / "own"), include_defaults=False
        ),
    )["results"]["arc_easy"]
    assert 0 < theirs["acc,none"] < 1
    assert ours == {
        f"tiny/arc_easy/{metric}": pytest.approx(theirs[f"{metric},none"])
        for metric in ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr")
    }


def test_keys_formats_and_what_is_left_alone(model, tokenizer, documents, tmp_path, no_network):
    rows = [json.loads(line) for line in documents.read_text().splitlines()]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "folder")
    (tmp_path / "text.txt").write_text("the sun is hot ? the ice is cold : " * 20)
    whole = suite(
        {"arc_easy": Task(path=str(tmp_path / "folder")), "arc_challenge": Task(str(documents))},
        perplexity=Perplexity(
            text=Text(path=str(tmp_path / "text.txt")), window=[16, 8], tokens=64
        ),
    )
    model.train()
    try:
        found = whole.evaluate(model, tokenizer, Cache(tmp_path / "cache"))
        assert model.training
    finally:
        model.eval()
    assert tokenizer.pad_token is None  # lm-eval sets one, in its copy
    metrics = ["acc", "acc_stderr", "acc_norm", "acc_norm_stderr"]
    tasks = [f"tiny/{task}/{metric}" for task in whole.tasks for metric in metrics]
    assert set(found) == {*(f"tiny/text/token_perplexity_{w}" for w in (16, 8)), *tasks}
    assert all(isinstance(value, float) for value in found.values())
    ids = tokenizer("the sun is hot ? the ice is cold : " * 20, return_tensors="pt").input_ids[0]
    for window in (16, 8):  # the same 64 tokens for both
        expected = token_perplexity(model, ids[:64], window, 1)
        assert found[f"tiny/text/token_perplexity_{window}"] == pytest.approx(expected, rel=1e-5)
    # one definition, one set of documents in two formats
    assert found["tiny/arc_easy/acc"] == found["tiny/arc_challenge/acc"]


def test_the_dense_model_is_evaluated_once(model, tokenizer, documents, tmp_path, monkeypatch):
    cache, tiny = Cache(tmp_path / "cache"), suite({"arc_easy": Task(path=str(documents))}, limit=4)
    first = tiny.dense(model, tokenizer, "some model", cache)
    monkeypatch.setattr(Suite, "evaluate", lambda *_: pytest.fail("evaluated again"))
    assert tiny.dense(model, tokenizer, "some model", cache) == first


def test_a_metric_behind_a_filter_keeps_its_stderr_suffix():
    assert metric_name("acc,none") == "acc"
    assert metric_name("exact_match_stderr,strict-match") == "strict-match_exact_match_stderr"


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"arc_eesy": Task()}, r"suite\.tasks\.arc_eesy is not a task of lm-eval"),
        ({"arc_eesy": Task(path="x.jsonl")}, r"suite\.tasks\.arc_eesy is not the name of a single"),
        ({"piqa": Task(path="no.jsonl")}, r"suite\.tasks\.piqa\.path='no\.jsonl' is not there"),
        ({"piqa": Task(path="tests")}, r"suite\.tasks\.piqa\.path='tests' is not a folder written"),
        ({"piqa": Task(path="{documents}")}, r"suite\.tasks\.piqa could not be loaded.*columns"),
        ({"piqa": Task()}, r"suite\.tasks\.piqa could not be loaded.*remove it with '~suite"),
    ],
)
def test_what_cannot_be_had_is_one_plain_error(
    model, tokenizer, documents, tmp_path, monkeypatch, tasks, message
):
    from pruning.evaluation import tasks as module

    def unreachable(*args, **more):
        raise ConnectionError("the hub cannot be reached")

    small = lm_eval.tasks.TaskManager(include_defaults=False)
    monkeypatch.setattr(module, "everything", lambda: small)  # the index of all takes 20 s
    if tasks == {"piqa": Task()}:
        monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for task in tasks.values():
        task.path = task.path and task.path.format(documents=documents)
        if task.path == "tests":
            (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        suite(tasks).evaluate(model, tokenizer, Cache(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (65, r"suite\.perplexity\.window=\[8, 65\] goes beyond the 64 positions"),
        (32, r"suite\.perplexity\.window=\[8, 32\] is more than the 2 tokens"),
    ],
)
def test_a_window_that_does_not_fit(model, tokenizer, tmp_path, window, message):
    (tmp_path / "text.txt").write_text("the sun")
    text = Text(path=str(tmp_path / "text.txt"))
    tiny = suite({}, perplexity=Perplexity(text=text, window=[8, window], tokens=None))
    with pytest.raises(ValueError, match=message):
        tiny.evaluate(model, tokenizer, Cache(tmp_path / "cache"))


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_is_whole(path):
    config = OmegaConf.load(path)
    assert config.pop("defaults") == ["/schema/suite@_here_"]
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Suite), config))
    assert isinstance(found, Suite)
    assert found.name == path.stem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 0}, r"suite\.limit=0"),
        ({"batch": 0}, r"suite\.batch=0"),
        (
            {"perplexity": {"tokens": 511}},
            r"suite\.perplexity\.tokens=511 must fill",
        ),
        ({"perplexity": {"window": [8, 1]}}, r"suite\.perplexity\.window=\[8, 1\]"),
        ({"tasks": {"piqa": {"path": None}}}, r"suite\.tasks\.\*\.wheel"),
    ],
)
def test_bad_values_name_themselves(change, message):
    config = OmegaConf.load(CONF / "quick.yaml")
    config.pop("defaults")
    with pytest.raises(ValueError, match=message):
        OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Suite), config, change))


def test_composing_imports_nothing_heavy():
    code = (
        "import sys, pruning.evaluation.suite, pruning.results.tracker; "
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'wandb'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
