"""A whole job on a model whose blocks stay in files, beside the same job on a resident one."""

import json
import random
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from pruning.composition import compose
from pruning.experiment import Experiment
from pruning.job.job import job
from tests.helpers.families import llama
from tests.helpers.tiny import word_tokenizer


def experiment(tmp_path: Path, *overrides: str) -> Experiment:
    """Compose a small job on a checkpoint of several shards."""
    where, text = tmp_path / "model", tmp_path / "text.jsonl"
    if not where.exists():
        llama().save_pretrained(where, max_shard_size="60KB")
        word_tokenizer().save_pretrained(where)
        draw = random.Random(0)
        lines = [[f"w{draw.randrange(125)}" for _ in range(60)] for _ in range(40)]
        text.write_text("".join(json.dumps({"text": " ".join(line)}) + "\n" for line in lines))
    hasty = [f"hardware.{each}" for each in ("noise=null", "tolerance=0.9", "repetitions=2")]
    return compose(
        [
            *("model=local", f"model.path={where}", "model.name=tiny", "model.resident=false"),
            *("calibration=text", f"calibration.text.path={text}", "calibration.tokens=1024"),
            *("calibration.sequence_length=32", "search.tokens=64"),
            *(
                "suite=wikitext",
                f"suite.perplexity.text.path={text}",
                "suite.perplexity.tokens=512",
            ),
            *(
                "suite.perplexity.text.subset=null",
                "suite.perplexity.window=[32]",
                "hardware.sequence_length=32",
                *hasty,
            ),
            *("speedup=1.02", "tracker=none", f"cache={tmp_path / 'cache'}", *overrides),
        ]
    )


def run(tmp_path: Path, name: str, *overrides: str):
    """Run a job; return its result and directory."""
    result = job(experiment(tmp_path, *overrides), tmp_path / name, lambda experiment: "")
    return result, tmp_path / name


@pytest.mark.job
def test_a_job_measures_writes_and_evaluates_it(tmp_path):
    streamed, out = run(tmp_path, "streamed")
    assert streamed is not None
    assert streamed.speedup.measured is not None
    assert all(entry["stands_in"] for entry in streamed.speedup.rounds)
    assert not (out / "pruned").exists()
    assert len([*(out / "model").glob("*.safetensors")]) == 4  # a block each, and what is beside
    model = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == streamed.params.pruned
    one = experiment(tmp_path)
    name = "wikitext/text/token_perplexity_32"
    one.model.resident, one.cache = True, str(tmp_path / "other")
    resident = job(one, tmp_path / "resident", lambda experiment: "")
    assert resident is not None
    expected = resident.evaluation.dense[name]
    assert streamed.evaluation.dense[name] == pytest.approx(expected, rel=1e-6)
    assert all("stands_in" not in entry for entry in resident.speedup.rounds)


@pytest.mark.job
def test_fisher_sensitivities_are_those_of_a_resident_model(tmp_path):
    """The pass back opens a block at a time, as the pass forward does."""
    losses = []
    for resident in ("false", "true"):
        cache = tmp_path / f"cache-{resident}"
        given = ("speedup=1.3", "search.sensitivity=fisher", f"cache={cache}")
        one = experiment(tmp_path, *given, f"model.resident={resident}")
        one.hardware = compose(["hardware=params"]).hardware  # the same levels in both
        assert job(one, tmp_path / resident, lambda experiment: "") is not None
        (entry,) = (cache / "sensitivities").glob("*/sensitivities.json")
        losses.append(json.loads(entry.read_text()))
    assert losses[0] == losses[1]
    assert any(row for row in losses[0])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "recovery=distill",
            r"^recovery=distill needs all weights in memory, and model\.resident=",
        ),
        ("recovery=local", r"^recovery=local needs all weights"),
        ("runtime=onnxruntime", r"^runtime=onnxruntime needs all weights"),
        ("method=flop", r"^method=flop needs all weights in memory"),
        (
            "calibration.launcher=torchrun",
            r"^calibration\.launcher='torchrun' gives each process a",
        ),
    ],
)
def test_what_needs_all_weights_is_refused(override, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        run(tmp_path, "job", override)


def test_too_little_memory_is_one_line_with_both_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("pruning.job.memory.available", lambda device: 10**5)
    with pytest.raises(ValueError, match=r"about 0\.\d\d GB of memory more .* 0\.00 GB are there"):
        run(tmp_path, "job")


def test_a_dry_run_says_what_it_takes(tmp_path, capsys):
    run(tmp_path, "job", "dry_run=true")
    assert "GiB more, one block at a time" in " ".join(capsys.readouterr().out.split())
