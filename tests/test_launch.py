"""The whole job through launch.py: results, reuse, damage, kill -9 at every stage, bad input."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
import torch
import transformers.dynamic_module_utils
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
)

from tests.helpers.families import qwen3_moe, random_model
from tests.helpers.jobs import ROOT
from tests.helpers.place import WHERE, WORDS, Place
from tests.helpers.tiny import word_tokenizer

pytestmark = pytest.mark.job

STAGES = (
    *("profile", "evaluate", "overlap", "moments", "levels", "folds", "sensitivities", "search"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("launch"))


@pytest.fixture(scope="module")
def job(place):
    """Run the first job; return its directory."""
    done = place.run(*place.arguments("speedup=1.3"))
    assert done.returncode == 0, done.stderr[-3000:]
    (out,) = (place.root / "outputs").glob("*/")
    return out


def test_the_result_keeps_its_contract(place, job):
    (result,) = place.results()
    assert result["schema"] == 1
    assert result["name"] == job.name
    assert re.fullmatch(r"tiny-ziplm-local-1.3x-[0-9a-f]{8}", job.name)
    assert result["study"] == "default"
    assert result["config"]["calibration"]["tokens"] == 1536
    speedup = result["speedup"]
    assert speedup["target"] == 1.3
    assert {"predicted", "measured"} <= set(speedup["rounds"][-1])
    assert speedup["measured"] == speedup["rounds"][-1]["measured"]
    assert speedup["rounds"][-1]["confirms"] is True
    assert speedup["rounds"][-1]["pairs"] == result["latency"]["dense"]["n"]
    latency = result["latency"]
    assert (latency["phase"], latency["batch"], latency["sequence"]) == ("prefill", 1, 128)
    for side in ("dense", "pruned"):
        assert 0 < latency[side]["p50_ms"] <= latency[side]["p90_ms"]
        assert latency[side]["n"] == len(latency[side]["all_ms"]) >= 5
        perplexity = result["evaluation"][side]["wikitext/text/token_perplexity_32"]
        assert perplexity > 1
    of_text = {"windows": 4, "predicted": 4 * 31, "bos": "none"}
    assert result["evaluation"]["windows"] == {"wikitext/text/token_perplexity_32": of_text}
    said = "token_perplexity_32: 124 tokens predicted in 4 windows, without a beginning-of-sequence"
    assert said in (job / "model" / "README.md").read_text()
    pairs = zip(latency["dense"]["all_ms"], latency["pruned"]["all_ms"], strict=True)
    assert speedup["measured"] == pytest.approx(median(a / b for a, b in pairs))
    stages = {"load", "profile", "calibrate", "levels", "search", "prune", "measure"}
    stages |= {"evaluate", "save"}
    assert stages | {"total"} <= set(result["seconds"])
    assert result["seconds"]["total"] >= sum(result["seconds"][s] for s in stages) - 0.1
    assert result["memory"]["peak_host_gib"] > 0.05
    assert "peak_device_gib" in result["memory"]
    assert [block["block"] for block in result["allocation"]] == [0, 1, 2]
    assert {"block", "query_heads", "kv_heads", "ffn"} <= set(result["allocation"][0])
    assert result["environment"]["packages"]["torch"] == torch.__version__.split("+")[0] or (
        result["environment"]["packages"]["torch"] == torch.__version__
    )


def test_a_job_leaves_what_it_promises(job):
    assert {"result.json", "config.yaml", "allocation.json", "model", "job.log"} <= {
        path.name for path in job.iterdir()
    }
    assert not (job / "error.txt").exists()
    assert not [path for path in job.rglob(".*") if path.name.startswith(".result")]
    allocation = json.loads((job / "allocation.json").read_text())
    kept = {name: len(site["keep"]) for name, site in allocation.items()}
    blocks = json.loads((job / "result.json").read_text())["allocation"]
    for block in blocks:
        assert kept[f"block.{block['block']}.ffn"] == block["ffn"]
        assert kept[f"block.{block['block']}.attention"] == block["query_heads"]


@torch.no_grad()
def test_the_checkpoint_loads(place, job, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(job / "model", trust_remote_code=True)
    result = place.results()[0]
    assert sum(p.numel() for p in model.parameters()) == result["params"]["pruned"]
    assert result["params"]["pruned"] < result["params"]["dense"]
    assert result["params"]["ratio"] == pytest.approx(
        result["params"]["pruned"] / result["params"]["dense"]
    )
    # the perplexity that the result reports, by hand, on the checkpoint: 4 windows of 32 tokens
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    text = (place.root / "text.txt").read_text()
    ids = torch.tensor(tokenizer(text).input_ids[: 4 * 32]).view(4, 32)
    loss = model(input_ids=ids, labels=ids).loss
    reported = result["evaluation"]["pruned"]["wikitext/text/token_perplexity_32"]
    assert float(loss.exp()) == pytest.approx(reported, rel=1e-4)


def test_the_same_command_again_is_skipped(place, job):
    written = (job / "result.json").stat().st_mtime_ns
    start = time.perf_counter()
    done = place.run(*place.arguments("speedup=1.3"))
    assert time.perf_counter() - start < 5
    assert done.returncode == 0
    assert done.stdout.strip() == f"done before: {job / 'result.json'}"
    assert (job / "result.json").stat().st_mtime_ns == written


def test_another_speedup_calibrates_and_profiles_nothing(place, job, jobs):
    before = place.entries()
    assert {name.split("/")[0] for name in before} == set(STAGES)
    done = jobs(*place.arguments("speedup=1.5", "study=other"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert new_stages(place, before) == {"search", "evaluate"}  # of the pruned model
    seconds = place.results()[1]["seconds"]
    # reading the text and the files; with a margin for a busy machine
    assert seconds["profile"] < 0.5
    assert seconds["calibrate"] < 1
    assert seconds["levels"] < 0.5


def test_a_part_of_the_suite_without_data_is_listed_and_the_rest_runs(place, job, jobs):
    gone = f"++suite.tasks={{arc_easy:{{path:{NO_FILE}}}}}"
    done = jobs(*place.arguments(gone, "speedup=1.3", outputs="partly"))
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("partly")
    found = result["evaluation"]
    assert found["not_run"]["arc_easy"].startswith(f"suite.tasks.arc_easy.path='{NO_FILE}' is not")
    assert set(found["read"]) == {"text"}
    assert "wikitext/text/token_perplexity_32" in found["pruned"]
    assert re.search(r"arc_easy.*not run", done.stdout)
    (out,) = (place.root / "partly").glob("*/")
    again = jobs(*place.arguments(gone, "speedup=1.3", outputs="partly"))
    assert not again.stdout.startswith("done before")  # the data may be there now
    assert f"Not run: {found['not_run']['arc_easy']}" in (out / "model" / "README.md").read_text()


def new_stages(place, before: dict[str, int]) -> set[str]:
    """Name the stages that have entries which were not there; the others must be as they were."""
    now = place.entries()
    assert before.items() <= now.items(), "a finished stage was built again"
    return {name.split("/")[0] for name in now.keys() - before.keys()}


def entry_file(place, stage: str, pattern: str) -> Path:
    return next((place.cache / stage).glob(f"*/{pattern}"))


def test_damaged_cache_files_are_noticed_and_rebuilt(place, job, jobs):
    """One file cut short, one with a flipped bit, one gone, one manifest cut short."""
    before = place.entries()
    moments = entry_file(place, "moments", "block-001.safetensors")
    with moments.open("r+b") as file:
        file.truncate(moments.stat().st_size // 2)
    levels = entry_file(place, "levels", "keeps.safetensors")
    content = bytearray(levels.read_bytes())
    content[-1] ^= 1
    levels.write_bytes(content)
    entry_file(place, "sensitivities", "sensitivities.json").unlink()
    for manifest in (place.cache / "evaluate").glob("*/manifest.json"):  # the dense model's too
        manifest.write_text(manifest.read_text()[:30])
    good = dict(moments=moments.parent, levels=levels.parent)

    done = jobs(*place.arguments("speedup=1.2"))
    assert done.returncode == 0, done.stderr[-3000:]
    (out,) = (p for p in (place.root / "outputs").glob("*/") if "-1.2x-" in p.name)
    log = (out / "job.log").read_text()
    damaged = re.findall(r"cache entry \S+/(\w+)/\w+ is damaged \((.*?)\): rebuilding", log)
    assert [stage for stage, _ in damaged] == ["evaluate", "moments", "levels", "sensitivities"]
    reasons = [reason for _, reason in damaged]
    assert reasons[0].startswith("manifest")
    assert re.fullmatch(r"block-001.safetensors has \d+ bytes, not \d+", reasons[1])
    assert reasons[2] == "keeps.safetensors was altered"
    assert reasons[3] == "sensitivities.json is missing"
    after = place.entries()
    new = {name.split("/")[0] for name in after.keys() - before.keys()}
    # the same content under the same names; a model that another target gave is known
    assert {"search"} <= new <= {"search", "evaluate"}
    rebuilt = {name.split("/")[0] for name in before if after[name] != before[name]}
    assert rebuilt == {"moments", "levels", "sensitivities", "evaluate"}
    assert good["moments"].is_dir()
    assert (good["levels"] / "keeps.safetensors").read_bytes() != bytes(content)
    for manifest in (place.cache / "evaluate").glob("*/manifest.json"):
        if len(manifest.read_text()) == 30:  # no job has asked for it since
            shutil.rmtree(manifest.parent)


SPARSE = ("method=flop", "method.sparsity=0.35", "speedup=null")
KILLS = {  # where: what is being called, which call, and the stages finished before
    "profile": ("pruning.latency.timer:milliseconds", 40, 0),
    "evaluate dense": ("pruning.evaluation.suite:Suite.evaluate", 1, 1),
    "overlap": ("pruning.evaluation.suite:Suite.shared", 1, 2),
    "moments": ("pruning.calibration.moments:Moments.write", 2, 3),
    "levels": ("pruning.methods.ziplm:ZipLM.site_levels", 3, 4),
    "folds": ("pruning.solver.folds:Folds._write", 2, 5),
    "sensitivities": ("pruning.search.trial:CandidateEvaluator._loss", 4, 6),
    "local search": ("pruning.search.problem:Problem.evaluate", 1, 7),
    "measure": ("pruning.latency.measurement:Measurement.compare", 1, 8),
    "evaluate pruned": ("pruning.evaluation.suite:Suite.evaluate", 1, 8),
    "allocation": ("pruning.job.run:write_allocation", 1, 8),
    "result": ("os:replace", 2, 8),  # allocation.json, then result.json, which is all there
}


def test_kill_9_at_every_stage_and_the_same_command_completes(tmp_path_factory, jobs):
    place = Place(tmp_path_factory.mktemp("kill"))
    arguments = place.arguments(f"cache={place.cache}", "speedup=1.3")
    finished: dict[str, int] = {}
    for where, (function, call, stages) in KILLS.items():
        done = jobs(*arguments, kill_at=function, call=call)
        assert done.returncode == -9, (where, done.stderr[-3000:])
        assert not place.results(), where
        now = place.entries()
        assert {name.split("/")[0] for name in now} == set(STAGES[:stages]), where
        assert finished.items() <= now.items(), f"{where}: a finished stage was built again"
        finished = now
    assert list(place.cache.glob("*/.*-*")) == []  # what killed builds left is cleared
    done = jobs(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert place.entries() == finished
    (result,) = place.results()
    assert result["speedup"]["measured"] > 1
    (out,) = (place.root / "outputs").glob("*/")
    assert "damaged" not in (out / "job.log").read_text()
    AutoModelForCausalLM.from_pretrained(place.root / "dense")  # inputs are as they were
    again = jobs(*arguments)
    assert again.stdout.startswith("done before:")


@torch.no_grad()
@pytest.mark.parametrize("dial", [["speedup=1.3"], ["method.ratio=0.3", "speedup=null"]])
def test_slimgpt_gives_a_checkpoint_like_any_other(place, job, jobs, dial):
    before = place.entries()
    outputs = dial[0].replace("=", "-")
    done = jobs(*place.arguments("method=slimgpt", *dial, outputs=outputs))
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results(outputs)
    # table and dense evaluation are shared, and the other where both dials end at one allocation
    assert new_stages(place, before) <= {"evaluate"}
    assert result["config"]["search"]["name"] == "schedule"
    (out,) = (place.root / outputs).glob("*/")
    model = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == result["params"]["pruned"]
    if "speedup=null" in dial:
        assert result["speedup"]["target"] is None
        assert "-0.3-" in out.name
        assert "| speedup target |  | none |" in (out / "model" / "README.md").read_text()
    else:
        assert result["speedup"]["target"] == 1.3
        assert len(result["speedup"]["rounds"]) >= 2
    assert result["seconds"]["prune"] > 0


@torch.no_grad()
@pytest.mark.parametrize("method", ["uniform_ffn", "random", "flap", "flap_no_bias", "depth"])
def test_baselines_go_the_same_way(place, job, jobs, method):
    before = place.entries()
    done = jobs(*place.arguments(f"method={method}", "speedup=1.3", outputs=method))
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results(method)
    assert result["config"]["method"]["name"] == method
    # moments and tables are shared; the uniform schedule has the levels of ziplm
    scored = {"levels", "sensitivities", "search"}
    own = {"uniform_ffn": set(), "depth": {"influence"}}.get(method, scored)
    found = new_stages(place, before)
    assert own <= found <= own | {"evaluate"}  # a model that another method gave is known
    assert result["speedup"]["measured"] > 1
    assert result["speedup"]["target"] == 1.3
    (out,) = (place.root / method).glob("*/")
    model = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == result["params"]["pruned"]
    biased = [name for name, _ in model.named_parameters() if name.endswith("down_proj.bias")]
    whole = {"query_heads": 4, "ffn": 1024}
    cut = any(0 < b[key] < most for b in result["allocation"] for key, most in whole.items())
    assert bool(biased) == (method == "flap" and cut)  # the search may have taken whole sub-blocks


@torch.no_grad()
def test_experts_go_the_same_way(place, jobs):
    """They leave, or get narrower; what is saved loads elsewhere and is what was judged."""
    sizes = {"hidden_size": 128, "moe_intermediate_size": 256, "max_position_embeddings": 128}
    dense = place.save(qwen3_moe(**sizes), "routed")
    given = f"model.path={dense}", "hardware.alignment=64", "speedup=1.3"
    done = jobs(*place.arguments(*given, outputs="routed-jobs"))
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("routed-jobs")
    assert result["speedup"]["measured"] > 1
    left = [(block["experts"], block["ffn"]) for block in result["allocation"]]
    assert all((experts == 0) == (width == 0) for experts, width in left)
    assert all(experts >= 2 and width % 64 == 0 for experts, width in left if experts)
    heads = [block["query_heads"] for block in result["allocation"]]
    assert any(of != (6, 256) for of in left) or any(count < 8 for count in heads)
    (out,) = (place.root / "routed-jobs").glob("*/")
    model = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == result["params"]["pruned"]
    ids = AutoTokenizer.from_pretrained(dense)((place.root / "text.txt").read_text()).input_ids
    ids = torch.tensor(ids[: 4 * 32]).view(4, 32)
    reported = result["evaluation"]["pruned"]["wikitext/text/token_perplexity_32"]
    assert float(model(input_ids=ids, labels=ids).loss.exp()) == pytest.approx(reported, rel=1e-4)
    assert "experts of so many" in (out / "model" / "README.md").read_text()
    done = jobs(*place.arguments(*given, "method=slimgpt", outputs="routed-jobs"))
    assert done.returncode == 1
    assert "method=slimgpt solves one projection" in done.stderr + done.stdout


@torch.no_grad()
def test_low_rank_goes_the_same_way(place, job, jobs):
    before = place.entries()
    given = ("method=svd", "method.modules=mlp.*", "hardware.alignment=16", "speedup=1.1")
    done = jobs(*place.arguments(*given, outputs="svd"))
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("svd")
    own = {"profile", "moments", "levels", "sensitivities", "search"}  # of projections
    assert new_stages(place, before) == own | {"evaluate"}
    assert result["speedup"]["measured"] > 1
    ranks = [(b["block"], m, r) for b in result["allocation"] for m, r in b["ranks"].items()]
    (out,) = (place.root / "svd").glob("*/")
    model = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == result["params"]["pruned"]
    assert ranks
    for block, module, rank in ranks:
        assert model.model.layers[block].get_submodule(module).rank == rank
    card = (out / "model" / "README.md").read_text()
    assert f"rank of {ranks[0][1]}" in card
    assert "faster on this hardware up to rank" in card
    assert result["break_even"]["mlp.up_proj"]["smaller"] == 113  # below 128 * 1024 / (128 + 1024)
    assert all(result["break_even"][module]["faster"] >= rank for _, module, rank in ranks)


@pytest.fixture(scope="module")
def classifier(place) -> list[str]:
    """Save a tiny BERT with a head, and sentences; return the overrides that use them."""
    path, text = place.root / "bert", place.root / "sentences.jsonl"
    sizes = {"hidden_size": 128, "intermediate_size": 1024, "num_attention_heads": 4}
    config = BertConfig(vocab_size=WORDS + 3, num_hidden_layers=3, num_labels=3, **sizes)
    random_model(config).save_pretrained(path)
    word_tokenizer(WORDS).save_pretrained(path)
    words = (place.root / "text.txt").read_text().split()
    rows = [{"text": " ".join(words[i : i + 5 + i % 7]), "label": i % 3} for i in range(0, 3900, 9)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"model.path={path}", "speedup=1.3"]
    return [*given, "calibration.pack=false", f"calibration.text.path={text}"]


@torch.no_grad()
@pytest.mark.parametrize("method", ["ziplm", "slimgpt"])
def test_a_classifier_goes_the_same_way(place, jobs, classifier, method):
    outputs = f"bert-{method}"
    rows = f"{{mine:{{path:{place.root / 'sentences.jsonl'},columns:[text]}}}}"
    suite = ("suite.perplexity=null", f"++suite.labelled={rows}", "suite.limit=40")
    given = (f"method={method}", *classifier, *suite)
    done = jobs(*place.arguments(*given, outputs=outputs))
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results(outputs)
    assert result["speedup"]["measured"] > 1
    assert result["latency"]["phase"] == "encode"
    for side in ("dense", "pruned"):
        assert 0 <= result["evaluation"][side]["wikitext/mine/accuracy"] <= 1
    (out,) = (place.root / outputs).glob("*/")
    model = AutoModelForSequenceClassification.from_pretrained(
        out / "model", trust_remote_code=True
    )
    assert sum(p.numel() for p in model.parameters()) == result["params"]["pruned"]
    assert "AutoModelForSequenceClassification.from_pretrained" in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["method=ziplm"], "suite='wikitext': suite.perplexity measures decoders, and"),
        ([*SPARSE, "suite.perplexity=null"], "trains an encoder on the labels of its task"),
        (["search.objective=task", "suite.perplexity=null"], "for an encoder use kl"),
    ],
)
def test_what_a_classifier_cannot_do(place, jobs, classifier, given, said):
    done = jobs(*place.arguments(*classifier, *given, outputs="refused"))
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]


def test_a_headless_encoder_is_taught_its_task_first(place, jobs, classifier):
    """Once for both methods; one word of each sentence says the class."""
    path, rows = place.root / "headless", place.root / "task.jsonl"
    AutoModelForSequenceClassification.from_pretrained(place.root / "bert").bert.save_pretrained(
        path
    )
    word_tokenizer(WORDS).save_pretrained(path)
    lines = [json.loads(line) for line in (place.root / "sentences.jsonl").read_text().splitlines()]
    texts = [{"text": f"w{row['label']} {row['text']}", "label": row["label"]} for row in lines]
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
    source = f"{{path:{rows},columns:[text],subset:null,wheel:null,sha256:null}}"
    given = [f"model.path={path}", "task=sst2", f"task.train={source}", "task.classes=3"]
    given += [
        "task.learning_rate=0.001",
        "task.epochs=3",
        "suite=glue",
        f"suite.labelled.sst2={source}",
    ]
    given += ["calibration=task", "hardware.alignment=16"]
    gone = ("calibration.text.path=", "suite.perplexity", "suite=wikitext", "calibration=text")
    for method in (
        ["method=ziplm", "speedup=1.3"],
        [*SPARSE, "method.steps=12"],
    ):
        outputs = "headless-" + method[0].removeprefix("method=")
        wanted = [a for a in place.arguments(outputs=outputs) if not a.startswith(gone)]
        done = jobs(*wanted, "calibration.batch=8", *given, *method)
        assert done.returncode == 0, done.stderr[-3000:]
        (result,) = place.results(outputs)
        assert set(result["evaluation"]["dense"]) == {
            "glue/sst2/accuracy",
            "glue/sst2/accuracy_stderr",
            "glue/sst2/accuracy_chance",
        }
        assert result["evaluation"]["dense"]["glue/sst2/accuracy"] > 0.95
    assert len([p for p in (place.cache / "finetune").iterdir() if p.is_dir()]) == 1


@torch.no_grad()
def test_a_reader_of_contexts_is_taught_pruned_and_judged(place, jobs, classifier):
    """The answer is the word behind the one that is asked for."""
    path, rows = place.root / "bare", place.root / "questions.jsonl"
    taught = AutoModelForSequenceClassification.from_pretrained(place.root / "bert")
    taught.bert.save_pretrained(path)
    word_tokenizer(WORDS).save_pretrained(path)
    words = (place.root / "text.txt").read_text().split()
    asked = []
    for i in range(0, 3600, 12):
        context, place_of = words[i : i + 30], i % 28
        asked.append(
            {
                "question": context[place_of],
                "context": " ".join(context),
                "answers": [context[place_of + 1]],
            }
        )
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    source = f"{{path:{rows},subset:null,wheel:null,sha256:null}}"
    given = [f"model.path={path}", "task=squad", f"task.train={source}", "task.epochs=0.5"]
    given += ["suite=squad", f"suite.questions.squad={source}", "suite.limit=40"]
    given += ["task.max_length=24", "task.stride=8", "calibration=task", "calibration.batch=8"]
    gone = ("calibration.text.path=", "suite.perplexity", "suite=wikitext", "calibration=text")
    wanted = [a for a in place.arguments(outputs="reader") if not a.startswith(gone)]
    done = jobs(*wanted, *given, "speedup=1.3")
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("reader")
    assert result["speedup"]["measured"] > 1
    metrics = [f"squad/squad/{of}" for of in ("exact_match", "f1")]
    for side in ("dense", "pruned"):
        scores = result["evaluation"][side]
        assert set(scores) == {*metrics, *(f"{metric}_stderr" for metric in metrics)}
        assert 0 <= scores[metrics[0]] <= scores[metrics[1]] <= 1
    (out,) = (place.root / "reader").glob("*/")
    model = AutoModelForQuestionAnswering.from_pretrained(out / "model", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == result["params"]["pruned"]
    assert "AutoModelForQuestionAnswering.from_pretrained" in done.stdout


FLOP = (
    "method=flop",
    "method.modules=mlp.*",
    "method.steps=12",
    "method.batch_size=4",
    "method.save_steps=4",
)


@torch.no_grad()
@pytest.mark.parametrize(
    "dial",
    [
        ("speedup=1.1", "hardware.alignment=16", "hardware.rounds=1"),
        (
            "speedup=null",
            "method.sparsity=0.5",
            "method.embedding=adaptive",
            "hardware.alignment=16",
        ),
    ],
)
def test_learned_ranks_go_the_same_way(place, job, jobs, dial):
    outputs = "flop-" + dial[0].replace("=", "-")
    arguments = place.arguments(*FLOP, *dial, "hardware.alignment=16", outputs=outputs)
    step = "pruning.methods.flop.training:GateTrainer.compute_loss"
    killed = jobs(*arguments, kill_at=step, call=7)  # two steps after a checkpoint
    assert killed.returncode == -9
    done = jobs(*arguments, kill_at=step, call=9)  # eight are left: the ninth would kill it
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results(outputs)
    assert [row["step"] for row in result["training"]] == list(range(1, 13))
    assert list((place.cache / "checkpoints").iterdir()) == []
    (out,) = (place.root / outputs).glob("*/")
    model = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == result["params"]["pruned"]
    gone = result["params"]["dense"] - result["params"]["pruned"]
    if "speedup=null" in dial:
        assert "-0.5-" in out.name
        whole = 3 * 3 * 128 * 1024 + 128 * (WORDS + 3)  # of the projections, of the embedding
        assert gone / whole == pytest.approx(0.5, abs=0.02)
        assert set(result["embedding"]) == {f"embedding.{cluster}" for cluster in range(3)}
    else:  # by the times that were measured; a tenth of so small a model's is less than their noise
        assert result["speedup"]["predicted"] >= 1.1 * (1 - 1e-9)
        ranks = [rank for block in result["allocation"] for rank in block["ranks"].values()]
        assert gone == sum(128 * 1024 - rank * (128 + 1024) for rank in ranks) > 0


def test_a_comparison_is_one_table_and_one_plot(place, job, jobs):
    arguments = place.arguments(
        "experiment=compare", "suite=wikitext", "method=uniform_ffn,depth", outputs="compare"
    )
    done = jobs("-m", *arguments, "speedup=1.3,1.6")  # instead of all methods at three targets
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(place.results("compare")) == 4
    table = (place.root / "compare" / "frontier.md").read_text()
    said, _, where = done.stdout.rstrip().rpartition("\n\nThe page: ")
    assert said.endswith(table.rstrip())
    assert where.endswith("compare/frontier.html")
    for target in ("1.300x", "1.600x"):
        for method in ("uniform_ffn", "depth"):
            assert f"| {target} | {method} |" in table
    assert (place.root / "compare" / "frontier.svg").read_text().startswith("<svg")
    page = (place.root / "compare" / "frontier.html").read_text()
    for result in place.results("compare"):
        assert result["name"] in page
        assert f"speedup={result['speedup']['target']}" in shlex.split(result["command"])
    again = jobs("-m", *arguments, "speedup=1.3,1.6")
    assert again.stdout.count("done before") == 4
    assert again.stdout.rstrip().partition("\n\nThe page: ")[0].endswith(table.rstrip())


def test_the_dense_method_changes_nothing(place, job, jobs):
    done = jobs(*place.arguments("method=dense", "speedup=1", outputs="dense"))
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("dense")
    assert result["params"]["ratio"] == 1
    assert result["evaluation"]["pruned"] == result["evaluation"]["dense"]


NO_FILE = "/nowhere/text.txt"


@pytest.mark.parametrize(("method", "option"), [("ziplm", "cache"), ("dense", "hydra.run.dir")])
def test_a_file_that_cannot_grow_is_one_line_and_leaves_nothing_behind(place, job, method, option):
    """As on a full disk: no file may exceed 2 MiB, and moments and checkpoints do."""
    cache = place.root / "limited"
    given = (f"method={method}", f"cache={cache}", "speedup=1")
    arguments = place.arguments(*given, outputs=f"limited-{method}")
    command = f"ulimit -f 2048; exec {shlex.join([sys.executable, 'launch.py', *arguments])}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=place.environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "Error executing job" not in done.stderr  # as Hydra says it
    (out,) = (place.root / f"limited-{method}").glob("*/")
    where = cache if option == "cache" else out
    (line,) = lines
    assert line.startswith(f"error: {where}: File too large: allow larger files (ulimit -f)")
    assert line.endswith(f"or give {option} another place")
    assert "Traceback" not in done.stderr + done.stdout
    left = {p.name for p in out.iterdir()}
    assert left <= {"config.yaml", "error.txt", "job.log", ".lock", ".hydra"}
    assert not [p for p in cache.glob("*/*/") if p.name.startswith(".")]


def test_of_two_jobs_the_possible_one_finishes(place, job, jobs):
    arguments = place.arguments(outputs="sweep")
    done = jobs("-m", *arguments, "speedup=1000,1.4")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "speedup=1000 cannot be met" in line
    assert [result["speedup"]["target"] for result in place.results("sweep")] == [1.4]
    (failed,) = (p for p in (place.root / "sweep").glob("*/") if "-1000x-" in p.name)
    assert "speedup=1000 cannot be met" in (failed / "error.txt").read_text()
    single = jobs(*place.arguments("speedup=1.4", outputs="sweep"))  # the identity is the same
    assert single.stdout.startswith("done before:")


def test_a_roofline_prunes_for_a_device_that_is_not_there(place, jobs):
    done = jobs(
        *place.arguments(
            *(
                "hardware=h200",
                "hardware.device=cpu",
                "hardware.batch=8",
                "hardware.sequence_length=128",
                "hardware.alignment=128",
                "speedup=1.3",
            ),
            outputs="estimated",
        )
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("estimated")
    speedup = result["speedup"]
    assert (speedup["basis"], speedup["measured"]) == ("estimated", None)
    assert speedup["predicted"] >= 1.3
    assert "speedup estimated" in done.stdout
    assert "latency estimated (" in done.stdout
    assert "speedup measured" not in done.stdout
    (out,) = (place.root / "estimated").glob("tiny-ziplm-h200-1.3x-*")
    for text in ((out / "model" / "README.md"), place.root / "estimated" / "frontier.md"):
        assert "estimated" in text.read_text()


def test_prune_for_a_table_from_a_file(place, jobs, tmp_path, monkeypatch, capsys):
    from pruning import cli
    from pruning.job import profile

    monkeypatch.setattr(profile, "PROFILES", tmp_path)
    monkeypatch.setenv("PRUNING_CACHE", str(place.cache))
    shapes = ["model=gpt2", "model.name=tiny", f"model.path={place.root / 'dense'}"]
    assert cli.main(["profile", *shapes, *WHERE]) == 0
    (path,) = tmp_path.glob("*.json")
    assert path.name == "tiny-local-prefill-1x128-float32.json"
    assert path.with_suffix(".svg").read_text().startswith("<svg")
    assert "| no attention |" in capsys.readouterr().out
    assert cli.main(["profile", "show", str(path)]) == 0
    assert cli.main(["profile", "show", str(tmp_path / "none.json")]) == 1
    assert "error:" in capsys.readouterr().err
    assert cli.main(["profile", "sideways"]) == 2
    done = jobs(
        *place.arguments(
            *("hardware=file", f"hardware.path={path}", "speedup=1.3", "hardware.device=cpu"),
            outputs="from_file",
        )
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("from_file")
    assert (result["speedup"]["basis"], result["speedup"]["measured"]) == ("predicted", None)
    assert result["latency"]["dense"]["n"] == 0
    assert "speedup predicted" in done.stdout
    assert "speedup measured" not in done.stdout
    made = json.loads(path.read_text())
    assert result["table"] == {key: made[key] for key in ("setting", "environment")}
    (out,) = (place.root / "from_file").glob("tiny-*")
    said = f"The table was measured on {made['environment']['cpu']}"
    assert said in done.stdout
    assert said in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize("phase", ["decode", "generate"])
def test_a_phase_is_met_and_named(place, jobs, phase):
    done = jobs(
        *place.arguments(
            f"hardware.phase={phase}",
            "hardware.max_new_tokens=8",
            "hardware.sequence_length=64",
            "speedup=1.2",
            outputs=phase,
        )
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results(phase)
    assert result["latency"]["phase"] == phase
    assert result["latency"]["tokens"] == (8 if phase == "generate" else 0)
    assert result["speedup"]["measured"] > 1
    assert phase in done.stdout
