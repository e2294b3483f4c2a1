"""Suites: their keys, agreement with lm-eval's own way, data without a hub, plain errors."""

import gzip
import json
import math
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import lm_eval
import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from pruning.data.text import Text
from pruning.evaluation.documents import documents as documents_of
from pruning.evaluation.parts import LmEvalTask, Perplexity
from pruning.evaluation.perplexity import token_perplexity
from pruning.evaluation.suite import Suite
from pruning.evaluation.tasks import TASKS, metric_name, pooled
from pruning.results.result import write_samples
from pruning.system.cache import Cache

CONF = Path(__file__).parents[2] / "conf" / "suite"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def suite(tasks: dict[str, LmEvalTask], **more) -> Suite:
    settings = {"perplexity": None, "labelled": {}, "limit": None, "batch_size": 3} | more
    return Suite(name="tiny", tasks=tasks, **settings)


def data(**files: Path) -> dict:
    """Say in a task of lm-eval that its splits are local files."""
    splits = {name: str(path) for name, path in files.items()}
    others = dict.fromkeys({"training_split", "validation_split"} if "dev" not in files else ())
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": splits},
        **others,
    }


def lm_evals_own(
    model, tokenizer, tmp_path, definitions: dict[str, dict], limit=None, shots=None
) -> dict:
    """Let lm-eval load the saved model and evaluate tasks of its own."""
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "own").mkdir()
    for name, definition in definitions.items():
        text = yaml.safe_dump({"task": name, **definition})
        (tmp_path / "own" / f"{name}.yaml").write_text(text)
    return lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tmp_path / 'model'}",
        tasks=[*definitions],
        num_fewshot=shots,
        batch_size=5,
        limit=limit,
        device="cpu",
        bootstrap_iters=10,
        task_manager=lm_eval.tasks.TaskManager(
            include_path=str(tmp_path / "own"), include_defaults=False
        ),
    )["results"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_sheets_are_documents_too(tmp_path, suffix):
    """Of a .tsv a quote is a character like any other, as in GLUE's files."""
    mark, quote = {".tsv": ("\t", '"'), ".csv": (",", "")}[suffix]
    rows = [("goal", "sol1", "sol2", "label"), (f"{quote}to sit down", "a chair", "a cloud", "0")]
    path = tmp_path / f"asked{suffix}"
    path.write_text("".join(mark.join(row) + "\n" for row in rows))
    found = documents_of(
        LmEvalTask(str(path)), "path", Cache(tmp_path / "cache"), "suite.tasks.piqa"
    )
    (row,) = datasets.Dataset.from_parquet(str(found))
    assert row == {"goal": f"{quote}to sit down", "sol1": "a chair", "sol2": "a cloud", "label": 0}


@pytest.mark.job
@pytest.mark.parametrize("limit", [None, 7])
def test_accuracy_is_lm_evals_own_on_the_saved_model(
    model, tokenizer, documents, tmp_path, no_network, limit
):
    tiny = suite({"arc_easy": LmEvalTask(path=str(documents))}, limit=limit)
    ours = tiny.evaluate(model, tokenizer, Cache(tmp_path / "cache")).metrics
    definition = {"include": str(TASKS / "arc" / "arc_easy.yaml"), **data(test=documents)}
    theirs = lm_evals_own(model, tokenizer, tmp_path, {"arc_easy": definition}, limit)["arc_easy"]
    assert 0 < theirs["acc,none"] < 1
    rows = [json.loads(line) for line in documents.read_text().splitlines()][:limit]
    guessed = sum(1 / len(row["choices"]["text"]) for row in rows) / len(rows)
    assert ours == {
        f"tiny/arc_easy/{metric}": pytest.approx(theirs[f"{metric},none"])
        for metric in ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr")
    } | {f"tiny/arc_easy/{metric}_chance": pytest.approx(guessed) for metric in ("acc", "acc_norm")}


def test_samples_are_the_first_documents_as_they_were_asked(model, tokenizer, documents, tmp_path):
    tiny = suite({"arc_easy": LmEvalTask(path=str(documents))}, samples=2)
    found = tiny.evaluate(model, tokenizer, Cache(tmp_path / "cache"))
    assert [sample["document"] for sample in found.samples] == [0, 1]
    rows = [json.loads(line) for line in documents.read_text().splitlines()]
    hits = []
    for row, sample in zip(rows, found.samples, strict=False):
        asked = [" ".join(prompt) for prompt in sample["prompts"]]
        assert all(row["question"] in text for text in asked)
        assert len(asked) == len(sample["answers"]) == 4
        likely = max(range(4), key=lambda i: float(sample["answers"][i][0]))
        hits.append(float(likely == "ABCD".index(row["answerKey"])))
    assert [sample["acc"] for sample in found.samples] == hits
    write_samples({"dense": found.samples, "pruned": []}, tmp_path)
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["dense", "dense"]
    assert json.loads(lines[0])["task"] == "arc_easy"


def test_keys_formats_and_what_is_left_alone(model, tokenizer, documents, tmp_path, no_network):
    rows = [json.loads(line) for line in documents.read_text().splitlines()]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "folder")
    (tmp_path / "text.txt").write_text("the sun is hot ? the ice is cold : " * 20)
    whole = suite(
        {
            "arc_easy": LmEvalTask(path=str(tmp_path / "folder")),
            "arc_challenge": LmEvalTask(str(documents)),
        },
        perplexity=Perplexity(
            text=Text(path=str(tmp_path / "text.txt")), window=[16, 8], tokens=64
        ),
    )
    model.train()
    try:
        found = whole.evaluate(model, tokenizer, Cache(tmp_path / "cache")).metrics
        assert model.training
    finally:
        model.eval()
    assert tokenizer.pad_token is None  # lm-eval sets one, in its copy
    metrics = [f"{of}{part}" for of in ("acc", "acc_norm") for part in ("", "_stderr", "_chance")]
    tasks = [f"tiny/{task}/{metric}" for task in whole.tasks for metric in metrics]
    assert set(found) == {*(f"tiny/text/token_perplexity_{w}" for w in (16, 8)), *tasks}
    assert all(isinstance(value, float) for value in found.values())
    ids = tokenizer("the sun is hot ? the ice is cold : " * 20, return_tensors="pt").input_ids[0]
    for window in (16, 8):  # the same 64 tokens for both
        expected = token_perplexity(model, ids[:64], window, 1)
        assert found[f"tiny/text/token_perplexity_{window}"] == pytest.approx(expected, rel=1e-5)
    # one definition, one set of documents in two formats
    assert found["tiny/arc_easy/acc"] == found["tiny/arc_challenge/acc"]


def test_the_average_is_over_the_tasks(model, tokenizer, documents, tmp_path, caplog):
    of = {name: LmEvalTask(str(documents)) for name in ("arc_easy", "arc_challenge")}
    found = suite(of, average=[*of]).evaluate(model, tokenizer, Cache(tmp_path / "cache")).metrics
    for metric in ("acc", "acc_norm"):
        values = [found[f"tiny/{task}/{metric}"] for task in of]
        assert found[f"tiny/average/{metric}"] == pytest.approx(sum(values) / 2)
    normed = {
        "tiny/a/acc": 0.5,
        "tiny/a/acc_norm": 0.7,
        "tiny/b/acc": 0.2,
    }  # as boolq, which has none
    bare = {key.removeprefix("tiny/"): value for key, value in normed.items()}
    both = suite({"a": LmEvalTask("a"), "b": LmEvalTask("b")}, average=["a", "b"])
    averages = both._averages(bare)
    assert averages == pytest.approx({"average/acc": 0.35, "average/acc_norm": 0.45})
    of_all = {"a/acc_stderr": 0.03, "b/acc_stderr": 0.04, "a/acc_chance": 0.25, "b/acc_chance": 0.5}
    averages = both._averages(bare | of_all)
    assert averages["average/acc_stderr"] == pytest.approx(0.05 / 2)  # of independent tasks
    assert averages["average/acc_chance"] == pytest.approx(0.375)
    assert "average/acc_norm_stderr" not in averages
    assert both._averages({"a/acc": 0.5, "b/f1": 0.2}) == {}
    assert "no mean, since b gave no acc" in caplog.text
    with pytest.raises(
        ValueError, match=r"^suite\.average has 'c', which is none of .*: a, b; give"
    ):
        replace(both, average=["a", "c"])


@pytest.mark.job
def test_a_folder_of_tasks_is_pooled_as_lm_eval_has_each(model, tokenizer, tmp_path, monkeypatch):
    """Two subjects of MMLU with examples in front, of two sizes, against lm-eval's own way."""
    sizes, files, folder = (
        {"anatomy": 5, "virology": 9},
        {},
        tmp_path / "tasks" / "mmlu" / "default",
    )
    folder.mkdir(parents=True)
    own = TASKS / "mmlu" / "default"
    for file in (own / "_default_template_yaml", *(own / f"mmlu_{s}.yaml" for s in sizes)):
        (folder / file.name).write_text(file.read_text())
    words = ["sun", "river", "ice", "fire", "cold", "hot", "moves"]
    for subject, size in sizes.items():
        for split, count in (("test", size), ("dev", 3)):
            rows = [
                {
                    "question": f"which of these is {words[(i + size) % 7]} ?",
                    "choices": [words[(i * k + count) % 7] for k in range(1, 5)],
                    "answer": (3 * i + size) % 4,
                }
                for i in range(count)
            ]
            path = files[subject, split] = tmp_path / f"{subject}-{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {"path": f"{tmp_path}/{{dataset_name}}-test.jsonl"}
    paths["examples"] = paths["path"].replace("-test", "-dev")
    monkeypatch.setattr("pruning.evaluation.tasks.TASKS", tmp_path / "tasks")
    tiny = suite({"mmlu": LmEvalTask(**paths, folder="mmlu/default", shots=2)})
    ours = tiny.evaluate(model, tokenizer, Cache(tmp_path / "cache")).metrics

    definitions = {
        f"mmlu_{s}": {
            "include": str(own / f"mmlu_{s}.yaml"),
            **data(test=files[s, "test"], dev=files[s, "dev"]),
        }
        for s in sizes
    }
    theirs = lm_evals_own(model, tokenizer, tmp_path, definitions, shots=2)
    hits = {s: theirs[f"mmlu_{s}"]["acc,none"] * n for s, n in sizes.items()}
    errors = [theirs[f"mmlu_{s}"]["acc_stderr,none"] * n for s, n in sizes.items()]
    assert 0 < sum(hits.values()) < 14
    assert ours == {
        "tiny/mmlu/acc": pytest.approx(sum(hits.values()) / 14),
        "tiny/mmlu/acc_stderr": pytest.approx(math.hypot(*errors) / 14),
        "tiny/mmlu/acc_chance": 0.25,
    }
    with pytest.raises(ValueError, match=r"^suite\.tasks\.mmlu\.folder='nothing' is no folder o"):
        suite({"mmlu": LmEvalTask(folder="nothing")}).evaluate(model, tokenizer, Cache(tmp_path))


@pytest.mark.job
def test_word_perplexity_of_a_raw_file_is_lm_evals_own(model, tokenizer, tmp_path, no_network):
    pages = [
        " = The sun = \n the sun is hot . \n = = Ice = = \n the ice is cold . \n",
        " = Rivers = \n a river moves = hot .\n",
    ]
    (tmp_path / "wiki.raw").write_text("\n" + "".join(pages))
    tiny = suite({"wikitext": LmEvalTask(str(tmp_path / "wiki.raw"))})
    ours = tiny.evaluate(model, tokenizer, Cache(tmp_path / "cache")).metrics
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"page": p}) + "\n" for p in pages))
    definition = {
        "include": str(TASKS / "wikitext" / "wikitext.yaml"),
        **data(test=tmp_path / "pages.jsonl"),
    }
    theirs = lm_evals_own(model, tokenizer, tmp_path, {"wikitext": definition})["wikitext"]
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        expected = theirs[f"{metric},none"]
        assert ours[f"tiny/wikitext/{metric}"] == pytest.approx(expected)
        assert expected > 0


@pytest.mark.job
def test_columns_of_other_names_and_answers_that_are_none(
    model, tokenizer, documents, tmp_path, no_network
):
    cache = Cache(tmp_path / "cache")
    rows = [json.loads(line) for line in documents.read_text().splitlines()]
    expected = suite({"arc_easy": LmEvalTask(str(documents))}).evaluate(model, tokenizer, cache)
    other = [{("key" if k == "answerKey" else k): v for k, v in row.items()} for row in rows]
    datasets.Dataset.from_list(other).save_to_disk(tmp_path / "other")
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    for path in ("other", "other.jsonl"):
        of = LmEvalTask(str(tmp_path / path), columns={"answerKey": "key"})
        found = suite({"arc_easy": of}).evaluate(model, tokenizer, cache)
        assert found.metrics == expected.metrics
        of.columns = {"answerKey": "label"}
        with pytest.raises(
            ValueError, match=r"^suite\.tasks\.arc_easy\.columns\.answerKey='label' i"
        ):
            suite({"arc_easy": of}).evaluate(model, tokenizer, cache)
    shares = []
    for answer in (True, False):
        row = {"passage": "the sun", "question": "is it hot", "answer": answer}
        (tmp_path / f"{answer}.jsonl").write_text(json.dumps(row) + "\n")
        of = LmEvalTask(str(tmp_path / f"{answer}.jsonl"))
        with pytest.raises(ValueError, match=r"^suite\.tasks\.boolq: the right answer 'label' of"):
            suite({"boolq": of}).evaluate(model, tokenizer, cache)
        of.columns = {"label": "answer"}
        found = suite({"boolq": of}).evaluate(model, tokenizer, cache)
        shares.append(found.metrics["tiny/boolq/acc"])
    assert sorted(shares) == [0, 1]  # the model says yes to both, or no


@pytest.mark.job
def test_what_was_measured_before_is_not_measured_again(
    model, tokenizer, documents, tmp_path, monkeypatch
):
    """Neither by another suite, nor after a kill; but for another model it is."""
    folder = tmp_path / "folder"
    datasets.Dataset.from_list(
        [json.loads(line) for line in documents.read_text().splitlines()]
    ).save_to_disk(folder)
    of = {"arc_easy": LmEvalTask(str(folder)), "arc_challenge": LmEvalTask(str(documents))}
    measure, measured = LmEvalTask.measure, []

    def note(self, name, candidate):
        measured.append(name)
        if measured == ["arc_easy", "arc_challenge"]:
            raise KeyboardInterrupt
        return measure(self, name, candidate)

    monkeypatch.setattr(LmEvalTask, "measure", note)
    given = (model, tokenizer, Cache(tmp_path / "cache"))
    with pytest.raises(KeyboardInterrupt):
        suite(of, limit=4).evaluate(*given)
    first = suite(of, limit=4).evaluate(*given)
    assert measured == ["arc_easy", "arc_challenge", "arc_challenge"]
    other = replace(suite({"arc_easy": of["arc_easy"]}, limit=4), name="other").evaluate(*given)
    assert len(measured) == 3
    assert other.metrics["other/arc_easy/acc"] == first.metrics["tiny/arc_easy/acc"]
    assert first.read["arc_easy"] == first.read["arc_challenge"]  # the same prompts
    drawn = [replace(suite(of, limit=4), seed=seed).evaluate(*given).read for seed in (1, 2)]
    assert drawn[0]["arc_easy"] == drawn[0]["arc_challenge"] != drawn[1]["arc_easy"]
    del measured[3:]
    assert suite(of, limit=5).evaluate(*given).read["arc_easy"] != first.read["arc_easy"]
    assert len(measured) == 5
    datasets.Dataset.from_list([json.loads(documents.read_text().splitlines()[7])]).save_to_disk(
        folder
    )
    changed = suite(of, limit=4).evaluate(model, tokenizer, Cache(tmp_path / "cache"))
    assert measured[5:] == ["arc_easy"]
    assert changed.read["arc_easy"] != first.read["arc_easy"]
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    try:
        suite(of, limit=4).evaluate(*given)
    finally:
        with torch.no_grad():
            model.get_output_embeddings().weight.div_(1.5)
    assert len(measured) == 8


def test_a_part_without_data_is_named_and_the_others_go_on(model, tokenizer, documents, tmp_path):
    (tmp_path / "text.txt").write_text("the sun is hot " * 20)
    perplexity = Perplexity(text=Text(path=str(tmp_path / "text.txt")), window=[16], tokens=None)
    of = {"arc_easy": LmEvalTask(str(documents)), "arc_challenge": LmEvalTask("./gone.jsonl")}
    cache = Cache(tmp_path / "cache")
    left, missing = suite(of, perplexity=perplexity, average=[*of]).available(cache)
    assert set(missing) == {"arc_challenge"}
    assert left.average == []
    assert missing["arc_challenge"].startswith("suite.tasks.arc_challenge.path='./gone.jsonl' is n")
    found = left.evaluate(model, tokenizer, cache)
    assert set(found.read) == {"text", "arc_easy"}
    whole = suite({"arc_easy": of["arc_easy"]}, perplexity=perplexity)
    assert whole.available(cache) == (whole, {})
    perplexity.text.path = str(tmp_path / "gone.txt")
    left, missing = suite(of, perplexity=perplexity).available(cache)
    assert (list(left.tasks), left.perplexity) == (["arc_easy"], None)
    assert set(missing) == {"text", "arc_challenge"}
    with pytest.raises(
        ValueError, match=r"^suite\.tasks\.arc_challenge\.path='\./gone\.jsonl' is "
    ):
        suite({"arc_challenge": of["arc_challenge"]}, perplexity=perplexity).available(cache)


def test_pooled_members_of_one_document_have_the_error_of_the_whole():
    """numpy's standard error of the mean of all answers."""
    hits = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    found = pooled(
        "of", {f"m{i}": 1 for i in range(7)}, {f"m{i}/acc": h for i, h in enumerate(hits)}
    )
    assert found == {
        "of/acc": pytest.approx(np.mean(hits)),
        "of/acc_stderr": pytest.approx(np.std(hits, ddof=1) / math.sqrt(7)),
    }


def test_a_metric_behind_a_filter_keeps_its_stderr_suffix():
    assert metric_name("acc,none") == "acc"
    assert metric_name("exact_match_stderr,strict-match") == "strict-match_exact_match_stderr"


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"arc_eesy": LmEvalTask()}, r"suite\.tasks\.arc_eesy is not a task of lm-eval"),
        (
            {"arc_eesy": LmEvalTask(path="x.jsonl")},
            r"suite\.tasks\.arc_eesy is not the name of a single",
        ),
        (
            {"piqa": LmEvalTask(path="no.jsonl")},
            r"suite\.tasks\.piqa\.path='no\.jsonl' is not there",
        ),
        (
            {"piqa": LmEvalTask(path="tests")},
            r"suite\.tasks\.piqa\.path=.*tests' cannot be read .*written by",
        ),
        (
            {"piqa": LmEvalTask(path="{documents}")},
            r"suite\.tasks\.piqa could not be loaded.*columns",
        ),
        ({"piqa": LmEvalTask()}, r"suite\.tasks\.piqa could not be loaded.*remove it with '~suite"),
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
    if tasks == {"piqa": LmEvalTask()}:
        monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for task in tasks.values():
        task.path = task.path and task.path.format(documents=documents)
        if task.path == "tests":
            (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        suite(tasks).evaluate(model, tokenizer, Cache(tmp_path / "cache"))


def test_a_window_that_does_not_fit(model, tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("the sun")
    text = Text(path=str(tmp_path / "text.txt"))
    tiny = suite({}, perplexity=Perplexity(text=text, window=[8, 65], tokens=None))
    with pytest.raises(ValueError, match=r"window=\[8, 65\] goes beyond the 64 positions"):
        tiny.check(model, tokenizer)
    tiny = suite({}, perplexity=Perplexity(text=text, window=[8, 32], tokens=None))
    tiny.check(model, tokenizer)
    with pytest.raises(ValueError, match=r"window=\[8, 32\] is more than the 2 tokens"):
        tiny.evaluate(model, tokenizer, Cache(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 0}, r"suite\.limit=0"),
        ({"batch_size": 0}, r"suite\.batch_size=0"),
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


@pytest.mark.job
def test_composing_imports_nothing_heavy():
    code = (
        "import sys, pruning.evaluation.suite, pruning.results.tracker; "
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'wandb'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.job
def test_a_column_of_several_and_a_packed_file(model, tokenizer, tmp_path, no_network):
    """The last words of LAMBADA, from rows that keep them apart, against lm-eval's own columns."""
    rows = [(f"w{i} w{2 * i} w{3 * i}", f" w{i + 1}") for i in range(1, 9)]
    plain, packed = tmp_path / "plain.jsonl", tmp_path / "packed.jsonl.gz"
    plain.write_text("".join(json.dumps({"text": a + b}) + "\n" for a, b in rows))
    apart = [{"text": "other", "request": {"context": a, "word": b}} for a, b in rows]
    with gzip.open(packed, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in apart)
    filled = {"text": "{request[context]}{request[word]}"}
    given = LmEvalTask(str(plain)), LmEvalTask(str(packed), columns=filled)
    cache, measured = Cache(tmp_path / "cache"), []
    for task in given:
        measured.append(suite({"lambada_openai": task}).evaluate(model, tokenizer, cache).metrics)
    assert measured[0] == measured[1]
    assert any("perplexity" in name for name in measured[0])
    given[1].columns = {"text": "{request[answer]}"}
    with pytest.raises(ValueError, match=r"^suite\.tasks\.lambada_openai\.columns\.text='{request"):
        suite({"lambada_openai": given[1]}).evaluate(model, tokenizer, cache)


@pytest.mark.parametrize("columns", [{}, {"goal": "goal"}])
@pytest.mark.parametrize("damaged", ["rows.jsonl", "rows.parquet", "folder", "wiki.raw"])
def test_damaged_documents_are_noticed_before_anything_is_measured(tmp_path, damaged, columns):
    rows = datasets.Dataset.from_list([{"goal": "sit", "sol1": "a", "sol2": "b", "label": 0}] * 9)
    path, said = tmp_path / damaged, "download it again"
    if damaged == "rows.jsonl":
        path.write_text('{"goal": "sit"}\n{"go')
        said = "line 2.*repair it"
    elif damaged == "rows.parquet":
        rows.to_parquet(path)
        path.write_bytes(path.read_bytes()[:-20])
    elif damaged == "folder":
        rows.save_to_disk(path)
        (arrow,) = path.glob("*.arrow")
        arrow.write_bytes(arrow.read_bytes()[:100])
        said = "give a folder"
    else:
        path.write_bytes("na\u00efve".encode("latin-1"))
        said = "convert it to UTF-8"
    task = {"piqa": LmEvalTask(path=str(path), columns=columns)}
    with pytest.raises(ValueError, match=rf"^suite\.tasks\.piqa\.path='{path}' cannot .*{said}"):
        suite(task).available(Cache(tmp_path / "cache"))
