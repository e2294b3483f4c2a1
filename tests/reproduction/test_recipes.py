"""Every recipe of a published table: a dry run, then its job, on a tiny model of its family."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedModel, Qwen3Config

from pruning.reproduction import tables
from pruning.reproduction.tables import add, load, names
from tests.helpers.families import random_model
from tests.helpers.place import LOCAL, WORDS, Place
from tests.helpers.tiny import word_tokenizer

pytestmark = pytest.mark.job

SIZES = {"vocab_size": WORDS + 3, "hidden_size": 128, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
GATED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 1024}
LONG = {"max_position_embeddings": 2048}  # of the longest windows
TASKS = {  # a document of each, in its columns
    "boolq": {"passage": "w1 w2", "question": "w3", "label": 1},
    "piqa": {"goal": "w1", "sol1": "w2", "sol2": "w3 w4", "label": 0},
    "hellaswag": {"ctx_a": "w1", "ctx_b": "w2", "activity_label": "w3", "label": "1"}
    | {"endings": ["w4", "w5", "w6", "w7"]},
    "winogrande": {"sentence": "w1 _ w2", "option1": "w3", "option2": "w4", "answer": "2"},
    "openbookqa": {"question_stem": "w1", "answerKey": "A"}
    | {"choices": {"text": ["w2", "w3"], "label": ["A", "B"]}},
    "rte": {"sentence1": "w1 w2", "sentence2": "w3", "label": 0},
}
ARC = {"id": "1", "question": "w1", "answerKey": "B"}
ARC |= {"choices": {"text": ["w2", "w3"], "label": ["A", "B"]}}
TASKS |= {"arc_easy": ARC, "arc_challenge": ARC}


def stand_in(kind: str) -> PreTrainedModel:
    """Make a tiny random model of a family."""
    match kind:
        case "llama":
            return random_model(LlamaConfig(**GATED, **LONG))
        case "qwen3":
            return random_model(Qwen3Config(**GATED, **LONG, head_dim=32))
        case "gpt2":
            return random_model(GPT2Config(**SIZES))
    config = BertConfig(**SIZES, intermediate_size=1024, num_labels=3)
    return random_model(config).bert  # type: ignore[return-value]


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Save the stand-ins and what their recipes read: a text is there already."""
    place = Place(tmp_path_factory.mktemp("recipes"))
    tokenizer = word_tokenizer(WORDS)
    tokenizer.eos_token = "<s>"  # lm-eval begins with it
    for kind in ("llama", "qwen3", "gpt2", "bert"):
        stand_in(kind).save_pretrained(place.root / kind)
        tokenizer.save_pretrained(place.root / kind)
    for task, row in TASKS.items():
        lines(place.root / f"{task}.jsonl", [row] * 3)
    words = (place.root / "text.txt").read_text().split()
    rows = [words[i : i + 12] for i in range(0, 3600, 12)]
    labelled = [{"text": " ".join(row), "label": i % 2} for i, row in enumerate(rows)]
    asked = [{"question": r[1], "context": " ".join(r), "answers": [r[2]]} for r in rows]
    for name, every in (("labelled", labelled), ("asked", asked)):  # trained on, judged on
        lines(place.root / f"{name}.jsonl", every[:250])
        lines(place.root / f"{name}-judged.jsonl", every[250:])
    draw = torch.Generator().manual_seed(7)
    others = torch.randint(WORDS, (4000,), generator=draw).tolist()
    (place.root / "other.txt").write_text(" ".join(f"w{word}" for word in others))
    return place


def smaller(place: Place, name: str) -> list[str]:
    """Return the overrides that make a recipe one for the stand-in, on what lies in `place`."""
    table, root = load(name), place.root
    kind = table.model["model_type"]
    given = [f"model.path={root / kind}", "tracker=none", f"hydra.run.dir={root / name}/job"]
    if kind == "bert":
        return [*given, *encoder(root, table.experiment)]
    given += [f"calibration.text.path={root / 'other.txt'}", "calibration.tokens=1536"]
    given += ["calibration.sequence_length=32", "suite.limit=2"]
    if name.startswith(("slimgpt", "flap", "depth", "tyr")):
        tasks = set(TASKS) - (set() if name.startswith("tyr") else {"rte"})
        given += [f"suite.tasks.{task}.path={root / task}.jsonl" for task in sorted(tasks)]
    if name.startswith("tyr"):  # MMLU has 57 subjects: tests of the suite have it
        given += ["~suite.tasks.mmlu", f"suite.average=[{','.join(sorted(TASKS))}]"]
        given += ["speedup=1.2"]  # of the parameters, of which few are in blocks
    elif name != "qwen3-8b-vllm":
        given += [f"suite.perplexity.text.path={root / 'text.txt'}"]
    if name.startswith(("flap", "tyr")):
        given += ["search.tokens=64"]
    if name.startswith("depth"):
        given += ["recovery.epochs=1", "speedup=1.15"]
    if name.startswith("slimgpt"):
        given += ["recovery.steps=2", "recovery.max_length=32", "hardware.alignment=128"]
    if kind == "qwen3":
        given += ["runtime=torch", "hardware.batch=2", "hardware.sequence_length=64"]
        given += ["hardware.max_new_tokens=4", "search.tokens=64", *LOCAL]
        given += ["~suite.tasks.mmlu", "~suite.tasks.mmlu_continuation"]
        given += ["recovery.tokens=128", "recovery.max_length=32", "hardware.alignment=128"]
    if kind == "gpt2":
        given += ["hardware.sequence_length=128", "hardware.alignment=128", *LOCAL]
        given += ["recovery.path=[1.2]", "speedup=1.4", "recovery.steps=2", "search.tokens=64"]
        given += ["recovery.max_length=32", "recovery.batch_size=2"]
    if kind != "llama" or name.startswith("slimgpt"):
        given += [word for word in (*LOCAL, "hardware.device=cpu") if word not in given]
    return given


def encoder(root: Path, experiment: str) -> list[str]:
    """Return the overrides of an encoder's recipe."""
    asked = experiment.endswith("squad")
    name, part = ("asked", "questions.squad") if asked else ("labelled", "labelled.sst2")
    rest = ",subset:null,wheel:null,sha256:null" + ("}" if asked else ",columns:[text]}")
    given = [f"task.train={{path:{root / name}.jsonl{rest}", "task.epochs=0.5"]
    given += [f"suite.{part}={{path:{root / name}-judged.jsonl{rest}"]
    given += ["task.max_length=24", "suite.limit=20", "calibration.tokens=1536"]
    given += ["calibration.batch=8", "hardware.batch=2", "hardware.sequence_length=128"]
    given += ["recovery.path=[1.2]", "speedup=1.4", "recovery.steps=2", "recovery.batch_size=4"]
    given += ["search.tokens=16", "hardware.alignment=128", "hardware.device=cpu", *LOCAL]
    return [*given, "task.stride=8"] if asked else given


@pytest.mark.parametrize("name", names())
def test_a_recipe_says_what_it_takes_and_runs(name, place, jobs, tmp_path, monkeypatch):
    table = load(name)
    row = table.jobs()[-1]
    command = [*table.words(row), *smaller(place, name)]
    dry = jobs(*command, "dry_run=true")
    assert dry.returncode == 0, dry.stderr[-3000:]
    assert "to compute" in dry.stdout
    done = jobs(*command)
    assert done.returncode == 0, done.stderr[-3000:]

    (tmp_path / f"{name}.yaml").write_text((tables.FOLDER / f"{name}.yaml").read_text())
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    assert add(table, place.root / name / "job" / "result.json", row.name) is row
    ours = load(name).ours[row.name]
    wanted = {key for published in row.published for key in published.cells}
    without = {"mmlu", "speed"}  # not asked here; not ours
    assert set(ours.cells) >= wanted - without
    assert f"model.path={table.model['model_type']}" in ours.differs
