"""Recovery through launch.py: killed, on a path of targets, refused, in several processes."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruning.recovery.stage import recovered
from pruning.recovery.train import Distillation
from pruning.system.cache import Cache
from tests.helpers.families import llama
from tests.helpers.place import Place
from tests.recovery.test_stage import half, nothing, training
from tests.test_sweep import PROXY

pytestmark = pytest.mark.job

METRIC = "wikitext/text/token_perplexity_32"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("recovery"))
    draw = torch.Generator().manual_seed(7)
    words = torch.randint(125, (6000,), generator=draw).tolist()
    (place.root / "other.txt").write_text(" ".join(f"w{w}" for w in words))
    return place


def given(place, *overrides: str, outputs: str) -> list[str]:
    return place.arguments(
        f"recovery.text.path={place.root / 'other.txt'}",
        *(
            "recovery.max_length=32",
            "recovery.batch_size=4",
            "recovery.steps=12",
            "recovery.save_steps=4",
        ),
        *("recovery.learning_rate=0.001", "search.steps=0"),
        *overrides,
        outputs=outputs,
    )


def test_a_killed_recovery_goes_on_and_is_reported(place, jobs):
    arguments = given(
        place, "recovery=distill", "recovery.eval_steps=6", "speedup=1.5", outputs="one"
    )
    step = "pruning.recovery.student:DistillationTrainer.compute_loss"
    killed = jobs(*arguments, kill_at=step, call=7)  # two steps after a checkpoint
    assert killed.returncode == -9
    (left,) = (place.root / "one").glob("*/pruned/met.json")
    kept = json.loads(left.read_text())
    done = jobs(*arguments, kill_at=step, call=9)  # eight are left: the ninth would kill it
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("one")
    took, evaluation = result["recovery"], result["evaluation"]
    assert (took["kind"], took["steps"]) == ("distill", 12)
    assert took["tokens_per_s"] > 0
    assert took["peak_host_gib"] > 0
    losses = {entry["step"]: entry["loss"] for entry in took["curve"] if "loss" in entry}
    assert list(losses) == list(range(1, 13))
    watched = [entry for entry in took["curve"] if METRIC in entry]
    assert [entry["step"] for entry in watched] == [6, 12]
    assert watched[-1][METRIC] == pytest.approx(evaluation["pruned"][METRIC])
    assert evaluation["one_shot"][METRIC] != evaluation["pruned"][METRIC]
    assert not left.parent.exists()
    assert result["speedup"]["rounds"][:-1] == kept["rounds"]  # not measured anew
    assert result["latency"]["dense"]["all_ms"] != kept["dense"]  # of other weights: timed anew
    again = result["speedup"]["rounds"][-1]
    assert again["aim"] is None
    assert again["confirms"] is True
    assert again["pairs"] == result["latency"]["dense"]["n"]
    assert result["speedup"]["measured"] == again["measured"]
    assert f"{METRIC}, before recovery" in done.stdout
    assert "12 steps" in done.stdout
    assert "recover" in result["seconds"]
    assert list((place.cache / "checkpoints").iterdir()) == []


@torch.no_grad()
def test_a_path_leaves_a_checkpoint_for_every_target(place, jobs):
    """Each goes on from the one before; all are compared with the dense model."""
    path = ("recovery=gradual", "recovery.path=[1.15,1.4]", *PROXY)
    done = jobs(*given(place, *path, "speedup=1.7", outputs="path"))
    assert done.returncode == 0, done.stderr[-3000:]
    results = place.results("path")
    assert [result["speedup"]["target"] for result in results] == [1.15, 1.4, 1.7]
    kept: dict[str, set[int]] = {}
    whole = sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(place.root / "dense").parameters()
    )
    for result in results:
        out = place.root / "path" / result["name"]
        assert result["params"]["dense"] == whole
        assert result["recovery"]["steps"] == 12
        allocation = json.loads((out / "allocation.json").read_text())
        now = {name: set(site["keep"]) for name, site in allocation.items()}
        assert all(
            site["of"] == {"attention": 4, "ffn": 1024}[name.split(".")[2]]
            for name, site in allocation.items()
        )
        assert all(units <= kept.get(name, units) for name, units in now.items())
        assert not kept or now != kept
        kept = now
        for block in result["allocation"]:
            assert len(now[f"block.{block['block']}.ffn"]) == block["ffn"]
            assert len(now[f"block.{block['block']}.attention"]) == block["query_heads"]
        model = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
        assert sum(p.numel() for p in model.parameters()) == result["params"]["pruned"]
        ids = torch.tensor(
            AutoTokenizer.from_pretrained(out / "model")(
                (place.root / "text.txt").read_text()
            ).input_ids[:128]
        ).view(4, 32)
        expected = result["evaluation"]["pruned"][METRIC]
        assert model(input_ids=ids, labels=ids).loss.exp() == pytest.approx(expected, rel=1e-4)
    again = jobs(*given(place, *path, "speedup=1.4", outputs="path"))
    assert again.stdout.startswith("done before:")


@pytest.mark.parametrize("method", ["slimgpt", "depth"])
def test_other_methods_go_on_too(place, jobs, method):
    path = ("recovery=gradual", "recovery.path=[1.15]", f"method={method}", "recovery.steps=2")
    path += PROXY
    wanted = [
        a for a in given(place, *path, "speedup=1.5", outputs=method) if a != "search.steps=0"
    ]
    done = jobs(*wanted)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = place.results(method)
    assert one["params"]["pruned"] > two["params"]["pruned"]


def test_adapters_of_a_job(place, jobs):
    done = jobs(
        *given(place, "recovery=lora", "recovery.steps=3", "speedup=1.5", *PROXY, outputs="lora")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("lora")
    assert result["recovery"]["kind"] == "lora"
    (out,) = (place.root / "lora").glob("*/model")
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == result["params"]["pruned"]


def test_text_of_the_suite_is_refused_and_low_rank_has_no_path(place, jobs):
    text = f"recovery.text.path={place.root / 'text.txt'}"
    whole = "suite.perplexity.tokens=null"
    done = jobs(*given(place, "recovery=distill", text, whole, "speedup=1.5", outputs="refused"))
    assert done.returncode == 1
    assert "recovery.text: " in done.stderr.splitlines()[-1]
    assert "rows hold text that the suite evaluates on" in done.stderr.splitlines()[-1]
    path = ("recovery=gradual", "recovery.path=[1.1]", "method=svd")
    done = jobs(*given(place, *path, "speedup=1.5", outputs="refused"))
    assert "which method=svd with search=calibrated cannot" in done.stderr.splitlines()[-1]


def test_two_processes_share_the_rows_of_a_step(tmp_path, monkeypatch):
    """The same model comes of it as of one process; rows of one length, so that means agree."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    dense = llama()
    pruned = half(dense)
    rows = [{"input_ids": torch.randint(3, 128, (10,))} for _ in range(40)]
    options = {"steps": 6, "save_steps": 2, "learning_rate": 0.001, "batch_size": 4}
    command = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node 2"
    one, two = (
        recovered(
            training(**options, launcher=launch),
            Distillation(pruned, dense, rows, 0),
            Cache(tmp_path / name),
            nothing,
        )
        for name, launch in (("one", None), ("two", command))
    )
    assert two.cost["steps"] == one.cost["steps"] == 6
    assert two.cost["tokens"] == one.cost["tokens"] == 6 * 4 * 10
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    bad = training(launcher="no-such-command")
    with pytest.raises(
        ValueError, match=r"^recovery\.launcher='no-such-command' is no command here"
    ):
        recovered(bad, Distillation(pruned, dense, rows, 0), Cache(tmp_path / "bad"), nothing)


def test_a_killed_reconstruction_goes_on_and_is_reported(place, jobs):
    arguments = place.arguments(
        *("recovery=local", "recovery.epochs=2", "speedup=1.5", "search.steps=0"), outputs="local"
    )
    fit = "pruning.recovery.local:_fit"
    killed = jobs(*arguments, kill_at=fit, call=2)  # the first block is done
    assert killed.returncode == -9
    done = jobs(*arguments, kill_at=fit, call=3)  # two of three are left: another would kill it
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("local")
    took, evaluation = result["recovery"], result["evaluation"]
    assert took["kind"] == "local"
    assert [entry["step"] for entry in took["curve"]] == [0, 1, 2]
    assert all(entry["after"] <= entry["before"] for entry in took["curve"])
    assert evaluation["one_shot"][METRIC] != evaluation["pruned"][METRIC]
    assert result["speedup"]["rounds"][-1]["confirms"] is True


def test_blocks_are_fitted_first_and_the_whole_is_trained_behind(place, jobs):
    both = given(place, "recovery=local_distill", "recovery.local.epochs=2", outputs="both")
    done = jobs(*both, "speedup=1.5")
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("both")
    took = result["recovery"]
    assert (took["kind"], took["steps"]) == ("local_distill", 12)
    assert (took["local"]["kind"], took["local"]["steps"]) == ("local", 2 * 10)
    assert "local reconstruction before it" in done.stdout
    bad = jobs(*both, "speedup=1.5", "recovery.local.epochs=0")
    assert bad.stderr.splitlines()[-1].startswith("error: recovery.local.epochs=0")
