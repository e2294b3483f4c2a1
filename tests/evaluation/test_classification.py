"""Judged texts: against transformers' own pipeline, metrics by hand, and plain errors."""

import json
import math
from dataclasses import replace
from typing import get_type_hints

import datasets
import pytest
import torch
from transformers import pipeline

from pruning.composition import SCHEMAS
from pruning.evaluation.parts import ClassificationBenchmark
from pruning.evaluation.specs import Metric
from pruning.evaluation.suite import Suite
from pruning.models.sites import positions
from pruning.system.cache import Cache
from tests.helpers.families import ENCODERS, llama
from tests.helpers.tiny import word_tokenizer

ROWS = [
    {
        "one": " ".join(f"w{(7 * i + k * i) % 120}" for k in range(2 + i % 6)),
        "two": f"w{i} w{2 * i}",
        "label": (i * i) % 3,
        "number": i / 7,
    }
    for i in range(23)
]


def suite(tmp_path, limit: int | None = None, **task) -> Suite:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = {"path": str(path), "columns": ["one"]} | task
    labelled = {"mine": ClassificationBenchmark(**settings)}
    return Suite("tiny", perplexity=None, tasks={}, labelled=labelled, limit=limit, batch_size=4)


def judged(suite: Suite, model, tmp_path) -> dict[str, float]:
    return suite.evaluate(model, word_tokenizer(), Cache(tmp_path / "cache")).metrics


@torch.no_grad()
def sharp(family: str):
    """Make a model whose answers depend on the words."""
    model = ENCODERS[family]()
    model.get_input_embeddings().weight.mul_(10)
    for name, parameter in model.named_parameters():
        if "classifier" in name and name.endswith("bias"):
            parameter.zero_()
    return model


def predicted(model, texts) -> list[int]:
    """Ask transformers' pipeline, one text or pair at a time."""
    classify = pipeline("text-classification", model=model, tokenizer=word_tokenizer())
    answers = [classify([text])[0]["label"] for text in texts]
    return [model.config.label2id[answer] for answer in answers]


@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize("family", ENCODERS)
def test_accuracy_is_the_share_of_labels_that_the_pipeline_predicts(family, limit, tmp_path):
    model = sharp(family)
    rows = ROWS[:limit]
    found = judged(suite(tmp_path, limit), model, tmp_path)
    answers = predicted(model, [row["one"] for row in rows])
    assert len(set(answers)) > 1
    hits = sum(answer == row["label"] for answer, row in zip(answers, rows, strict=True))
    share = hits / len(rows)
    assert found["tiny/mine/accuracy"] == pytest.approx(share)
    error = math.sqrt(share * (1 - share) / (len(rows) - 1))
    assert found["tiny/mine/accuracy_stderr"] == pytest.approx(error)
    truth = [row["label"] for row in rows]
    most = max(truth.count(label) for label in truth) / len(rows)
    assert found["tiny/mine/accuracy_chance"] == pytest.approx(most)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_what_an_engine_answers_is_judged_alike(name, tmp_path):
    pytest.importorskip(name)
    model, given = sharp("bert"), suite(tmp_path)
    kind = SCHEMAS["runtime"][name]
    served = kind(precision=next(p for p in get_type_hints(kind)["precision"] if p == "float32"))
    found = given.evaluate(served.served(model), word_tokenizer(), Cache(tmp_path / "one"), name)
    assert found.metrics == judged(given, model, tmp_path)
    with pytest.raises(ValueError, match=r"measures .*SequenceClassification, and this is a Llama"):
        given.check(served.served(llama()), word_tokenizer())


def test_a_slice_is_drawn_by_its_seed(tmp_path):
    model = sharp("bert")
    answers = predicted(model, [row["one"] for row in ROWS])
    hits = [int(a == row["label"]) for a, row in zip(answers, ROWS, strict=True)]
    shares = set()
    for seed in range(6):
        drawn = replace(suite(tmp_path, 7), seed=seed)
        found = judged(drawn, model, tmp_path)["tiny/mine/accuracy"]
        assert found == judged(drawn, model, tmp_path)["tiny/mine/accuracy"]
        assert (found * 7) == pytest.approx(round(found * 7))
        shares.add(found)
    assert len(shares) > 1
    for limit in (None, 99):
        whole = judged(replace(suite(tmp_path, limit), seed=3), model, tmp_path)
        assert whole["tiny/mine/accuracy"] == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("family", ENCODERS)
def test_texts_are_cut_at_what_the_model_can_read(family, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"one": "w1 " * 300, "label": 0}) + "\n")
    model = sharp(family)
    assert positions(model) == {"roberta": 127, "mpnet": 126}.get(family, 128)
    assert judged(suite(tmp_path, path=str(tmp_path / "long.jsonl")), model, tmp_path)


def test_another_tokenizer_is_another_measurement(tmp_path):
    model, cache = sharp("bert"), Cache(tmp_path / "cache")
    first = suite(tmp_path).evaluate(model, word_tokenizer(), cache).metrics
    assert suite(tmp_path).evaluate(model, word_tokenizer(20), cache).metrics != first


def test_pairs_are_read_as_pairs(tmp_path):
    model = sharp("bert")
    task = suite(tmp_path, columns=["one", "two"])
    found = judged(task, model, tmp_path)
    pairs = [{"text": row["one"], "text_pair": row["two"]} for row in ROWS]
    answers = predicted(model, pairs)
    assert answers != predicted(model, [row["one"] for row in ROWS])
    hits = sum(answer == row["label"] for answer, row in zip(answers, ROWS, strict=True))
    assert found["tiny/mine/accuracy"] == pytest.approx(hits / len(ROWS))


def test_metrics_by_hand(tmp_path):
    """Two classes for F1 and Matthews, one output for the correlations."""
    from pruning.evaluation.classification import score

    logits = torch.tensor([[1.0, 0], [0, 1], [0, 2], [3, 1], [0, 1]]).numpy()
    truth = [0, 1, 0, 1, 1]  # hits: 2 of 3 that are 1, one false alarm
    assert score(Metric.accuracy, logits, truth) == pytest.approx(3 / 5)
    assert score(Metric.f1, logits, truth) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    matthews = (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)
    assert score(Metric.matthews, logits, truth) == pytest.approx(matthews)
    outputs = torch.tensor([[1.0], [2], [4]]).numpy()
    assert score(Metric.spearman, outputs, [0.1, 0.2, 0.9]) == pytest.approx(1)
    x, y = torch.tensor([1.0, 2, 4]), torch.tensor([0.1, 0.3, 0.2])
    x, y = x - x.mean(), y - y.mean()
    pearson = float(x @ y / (x.norm() * y.norm()))
    assert score(Metric.pearson, outputs, [0.1, 0.3, 0.2]) == pytest.approx(pearson)


def test_a_tsv_and_a_folder_hold_the_same_rows(tmp_path):
    model, words = sharp("bert"), word_tokenizer()
    head = "one\tlabel\n"
    lines = "".join(f"{row['one']}\t{row['label']}\n" for row in ROWS)
    (tmp_path / "rows.tsv").write_text(head + lines)
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "folder")
    cache = Cache(tmp_path / "cache")
    ours = suite(tmp_path).evaluate(model, words, cache).metrics
    for path in ("rows.tsv", "folder"):
        other = suite(tmp_path, path=str(tmp_path / path))
        assert other.evaluate(model, words, cache).metrics == ours


def test_an_altered_file_is_evaluated_again(tmp_path):
    """Also where a pattern names it."""
    model, words, cache = sharp("bert"), word_tokenizer(), Cache(tmp_path / "cache")
    one = suite(tmp_path, path=str(tmp_path / "r*.jsonl"))
    before = one.evaluate(model, words, cache).metrics
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    after = one.evaluate(model, words, cache).metrics
    assert before["tiny/mine/accuracy"] != after["tiny/mine/accuracy"]
    assert after["tiny/mine/accuracy"] in (0, 1)


def test_plain_errors(tmp_path):
    model, words, cache = ENCODERS["bert"](), word_tokenizer(), Cache(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"^suite\.labelled\.mine\.path='./gone' does not exist"):
        suite(tmp_path, path="./gone").evaluate(model, words, cache)
    with pytest.raises(
        ValueError, match=r"^suite\.labelled\.mine\.columns='body' is not a column of "
    ):
        suite(tmp_path, columns=["body"]).evaluate(model, words, cache)
    with pytest.raises(
        ValueError, match=r"^suite='tiny': suite\.labelled\.mine measures ForSequenceClass"
    ):
        suite(tmp_path).evaluate(llama(), words, cache)
