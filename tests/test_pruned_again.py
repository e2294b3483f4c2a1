"""A pruned checkpoint is the dense model of another job."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.models.checkpoint import save
from pruning.models.shrink import shrink_
from pruning.models.sites import Kind, sites
from tests.helpers.allocations import heads
from tests.helpers.place import Place
from tests.helpers.tiny import word_tokenizer

pytestmark = pytest.mark.job


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Make a place with a model of unequal widths and heads, an attention and an FFN gone."""
    found = Place(tmp_path_factory.mktemp("pruned"))
    model = AutoModelForCausalLM.from_pretrained(found.root / "dense")
    of = {(site.block, site.kind): site for site in sites(model)}
    a0, a1 = of[0, Kind.ATTENTION], of[1, Kind.ATTENTION]
    f0, f2 = of[0, Kind.FFN], of[2, Kind.FFN]
    gone = {s: torch.zeros(s.units, dtype=torch.bool) for s in (a1, f2)}
    narrow = torch.arange(f0.units) >= 300
    shrink_(model, gone | {a0: heads(a0, [0], [[0, 1]]), f0: narrow})
    save(model, word_tokenizer(125), found.root / "pruned", "")
    return found


def arguments(place, *overrides: str) -> list[str]:
    of = [a for a in place.arguments(*overrides) if not a.startswith(("model=", "model.path="))]
    return ["model=local", f"model.path={place.root / 'pruned'}", *of]


def test_a_pruned_model_is_pruned_further(place, jobs):
    done = jobs(*arguments(place, "speedup=1.25", "hardware.rounds=1"))  # noise corrects no aim
    assert done.returncode == 0, done.stderr[-3000:]
    (out,) = (place.root / "outputs").glob("tiny-ziplm-*")
    result = json.loads((out / "result.json").read_text())
    dense = AutoModelForCausalLM.from_pretrained(place.root / "pruned", trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    assert result["params"]["dense"] == sum(p.numel() for p in dense.parameters())
    assert result["params"]["pruned"] == sum(p.numel() for p in model.parameters())
    assert result["params"]["pruned"] < result["params"]["dense"]
    first, second, third = result["allocation"]
    assert first["kv_heads"] == 1
    assert first["ffn"] <= 724
    assert second["query_heads"] == third["ffn"] == 0
    assert "base_model" not in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=slimgpt", "speedup=1.2"],
        ["method=depth", "speedup=1.2"],
        ["method=dense", "search=none", "speedup=1"],
    ],
)
def test_other_methods_take_a_pruned_model(place, jobs, overrides):
    done = jobs(*arguments(place, *overrides))
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_cannot_be_done_with_it_is_one_line(place, jobs):
    done = jobs(*arguments(place, "method=uniform_ffn", "speedup=1.2"))
    assert done.returncode == 1
    assert "error: search=uniform gives all FFNs the same width" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_result_is_recovered(place, jobs):
    """Without cutting more: the pruned model is trained as it is."""
    training = ["recovery=finetune", "recovery.steps=2", "recovery.max_length=32"]
    words = torch.randint(125, (400,), generator=torch.Generator().manual_seed(7)).tolist()
    (place.root / "other.txt").write_text(" ".join(f"w{word}" for word in words))
    apart = f"suite.perplexity.text.path={place.root / 'other.txt'}"
    overrides = ["method=dense", "search=none", "speedup=1", *training, apart]
    done = jobs(*arguments(place, *overrides, "model.name=trained"))
    assert done.returncode == 0, done.stderr[-3000:]
    (out,) = (place.root / "outputs").glob("trained-dense-*")
    result = json.loads((out / "result.json").read_text())
    assert result["recovery"]["steps"] == 2
    assert result["params"]["ratio"] == 1
