"""`dry_run=true` says what a job would compute, and computes nothing of it."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from pruning.composition import compose
from pruning.evaluation.parts import LmEvalTask
from pruning.job.dry_run import dry_run
from pruning.system.cache import Cache
from tests.helpers.place import Place

pytestmark = pytest.mark.job


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("rehearsal"))


def states(text: str) -> dict[str, str]:
    """Read the printed table: stage -> state."""
    rows = re.findall(r"^│ (.+?) +│ (.+?) +│ +(?:\d+ )?│", text, re.M)
    return {stage.strip(): state.strip() for stage, state in rows}


def seconds(text: str) -> dict[str, str]:
    """Read the printed table: stage -> seconds, "" where there are none."""
    rows = re.findall(r"^│ (.+?) +│ .+? +│ +(\d*) *│", text, re.M)
    return {stage.strip(): number for stage, number in rows}


def test_before_the_first_job_and_after_it(place, jobs):
    arguments = place.arguments("speedup=1.3")
    dry = jobs(*arguments, "dry_run=true")
    assert dry.returncode == 0, dry.stderr[-3000:]
    assert place.entries() == {}
    assert place.results() == []
    assert set(states(dry.stdout).values()) == {"to compute"}
    assert set(states(dry.stdout)) == {
        *("profile", "evaluate the dense model", "moments", "levels", "folds"),
        *("sensitivities", "search", "prune"),
        *("measure", "evaluate the pruned model"),
    }
    assert re.search(r"about \d+ minutes.*GiB", dry.stdout)
    assert seconds(dry.stdout)["profile"] != ""

    assert jobs(*arguments).returncode == 0
    before = place.entries()
    dry = jobs(*place.arguments("speedup=1.5", "dry_run=true"))
    cached = {stage for stage, state in states(dry.stdout).items() if state == "cached"}
    assert cached == {
        *("profile", "evaluate the dense model", "moments", "levels", "folds", "sensitivities")
    }
    assert place.entries() == before
    told = seconds(dry.stdout)
    assert {stage: told[stage] for stage in cached} == dict.fromkeys(cached, "")
    assert told["search"] != "" != told["evaluate the pruned model"]
    done = jobs(*arguments, "dry_run=true")  # the same job: no other name, and it is done
    assert done.stdout.startswith("done before:")


def test_a_text_that_was_read_takes_no_time_where_a_task_was_not(place, capsys, monkeypatch):
    rows = place.root / "questions.jsonl"
    row = {"id": "1", "question": "w1", "choices": {"text": ["w2", "w3"], "label": ["A", "B"]}}
    rows.write_text(json.dumps(row | {"answerKey": "A"}) + "\n")
    monkeypatch.setenv("COLUMNS", "200")
    ending = shutil.copytree(place.root / "dense", place.root / "ending")
    tokenizer = AutoTokenizer.from_pretrained(ending)
    tokenizer.eos_token = "<s>"  # lm-eval needs one
    tokenizer.save_pretrained(ending)
    arguments = place.arguments("speedup=1.3", f"model.path={ending}")
    given = [a for a in arguments if not a.startswith("hydra.")]
    experiment = compose([*given, f"cache={place.root / 'other'}"])
    device, cache = torch.device("cpu"), Cache(experiment.cache)
    experiment.suite.evaluate(*experiment.model.load(cache, device), cache)
    experiment.suite.tasks["arc_easy"] = LmEvalTask(str(rows))
    dry_run(experiment, "job")
    out = capsys.readouterr().out
    assert states(out)["evaluate the dense model"] == "to compute"
    assert seconds(out)["evaluate the dense model"] == ""
    assert seconds(out)["evaluate the pruned model"] != ""


def test_reconstruction_takes_time(place, jobs):
    dry = jobs(*place.arguments("recovery=local", "speedup=1.3", "dry_run=true"))
    assert states(dry.stdout)["recover"] == "to compute"
    assert seconds(dry.stdout)["recover"] != ""


@pytest.mark.parametrize("method", ["slimgpt", "depth", "svd"])
def test_every_kind_of_method_can_be_rehearsed(place, jobs, method):
    dry = jobs(*place.arguments(f"method={method}", "speedup=1.3", "dry_run=true"))
    assert dry.returncode == 0, dry.stderr[-3000:]
    assert "prune" in states(dry.stdout)


def test_what_flop_trained_is_known(place, jobs):
    """Its start is found by a search, which is in the cache too."""
    flop = ("method=flop", "speedup=null", "method.sparsity=0.5", "method.steps=12")
    arguments = place.arguments(*flop, "hardware.alignment=16")
    before = states(jobs(*arguments, "dry_run=true").stdout)
    assert before["training"] == "to compute"
    done = jobs(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    entries = place.entries()
    other = jobs(*arguments, "suite.limit=3", "dry_run=true")  # another job of the same training
    stages = ("moments", "levels", "sensitivities", "search", "training")
    assert {stage: states(other.stdout)[stage] for stage in stages} == dict.fromkeys(
        stages, "cached"
    )
    assert states(other.stdout)["prune"] == "to compute"
    assert place.entries() == entries
