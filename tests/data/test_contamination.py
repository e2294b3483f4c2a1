"""What is trained on holds nothing of what is evaluated on."""

import json
import logging

import numpy as np
import pytest
import torch

from pruning.calibration.calibration import Calibration, Target, Weight
from pruning.data.contamination import LENGTH, disjoint, windows
from pruning.data.text import Text
from pruning.evaluation.parts import ClassificationBenchmark, LmEvalTask, Perplexity
from pruning.evaluation.suite import Suite
from pruning.recovery.rows import rows_of
from pruning.system.cache import Cache
from tests.helpers.tiny import job_with, word_tokenizer
from tests.recovery.test_stage import training


def draw(count, seed):
    return torch.randint(3, 50_000, (count,), generator=torch.Generator().manual_seed(seed))


def row(ids):
    return {"input_ids": ids}


def test_runs_have_one_hash_each_and_the_same_wherever_they_are():
    ids = draw(200, 0).numpy().astype(np.int64)
    found = windows(ids)
    assert len(found) == len(set(found.tolist())) == 200 - LENGTH + 1
    shifted = windows(np.concatenate([draw(7, 1).numpy().astype(np.int64), ids]))
    assert np.array_equal(shifted[7:], found)
    assert len(windows(ids[: LENGTH - 1])) == 0


@pytest.mark.parametrize("start", [0, 5, 31, 40])
def test_a_row_with_a_piece_of_the_text_is_left_out(start, caplog):
    text = draw(300, 2)
    rows = [row(draw(100, seed)) for seed in range(10, 40)]
    tainted = draw(100, 50)
    piece = text[start : start + 2 * LENGTH - 1]
    tainted[11 : 11 + len(piece)] = piece
    with caplog.at_level(logging.WARNING):
        left = disjoint([*rows, row(tainted)], [text.tolist()], [], "recovery.text")
    assert left == rows
    assert "1 of 31 rows hold text of the suite" in caplog.text


def test_a_short_text_counts_where_it_is_all_of_a_row():
    text = draw(9, 3)
    rows = [row(draw(12, seed)) for seed in range(20)]
    whole = row(torch.cat([torch.tensor([1]), text, torch.tensor([2])]))  # special ones around it
    longer = row(torch.cat([text, draw(3, 99)]))
    assert disjoint([*rows, whole, longer], [text.tolist()], [1, 2], "task.train") == [
        *rows,
        longer,
    ]


def test_a_pair_of_texts_counts_as_one():
    """Special tokens lie between the two in a row, and none where they are judged."""
    first, second = draw(22, 5), draw(20, 6)
    rows = [row(draw(60, seed)) for seed in range(20)]
    one, two = torch.tensor([1]), torch.tensor([2])
    pair = row(torch.cat([one, first, two, second, two]))
    judged = [torch.cat([first, second]).tolist()]
    assert disjoint([*rows, pair], judged, [1, 2], "task.train") == rows


def test_the_evaluation_text_itself_is_refused():
    text = draw(1000, 4)
    rows = [row(part) for part in text.split(100)]
    with pytest.raises(
        ValueError, match=r"^recovery\.text: 10 of 10 rows hold text that the suite"
    ):
        disjoint(rows, [text.tolist()], [], "recovery.text")


def rows_from(tmp_path, judged, **values):
    path = tmp_path / "text.txt"
    options = {"tokens": 640, "sequence_length": 64, "batch": 4, "held_out": 0.5, "pack": True}
    options |= {"weight": Weight.none, "target": Target.local}
    given = Calibration("tiny", Text(str(path)), **options)
    suite = Suite("mine", **{"tasks": {}, **judged}, limit=None, batch_size=1)
    recovery = training(max_length=64, **values)
    return rows_of(
        recovery, given, None, suite, word_tokenizer(2000), job_with(Cache(tmp_path / "c"))
    )


def test_rows_are_as_many_as_the_budget_reads(tmp_path):
    words = [f"w{i}" for i in torch.randint(2000, (4000,)).tolist()]
    (tmp_path / "text.txt").write_text(" ".join(words))
    nothing = {"perplexity": None, "labelled": {}}
    assert len(rows_from(tmp_path, nothing, steps=8, batch_size=2)) == 16
    assert len(rows_from(tmp_path, nothing, steps=None, tokens=640)) == 10
    assert len(rows_from(tmp_path, nothing, steps=None, minutes=1.0)) == 4000 // 64
    same = {"perplexity": Perplexity(Text(str(tmp_path / "text.txt")), [64], None), "labelled": {}}
    with pytest.raises(ValueError, match=r"^calibration\.text: .* rows hold text that the suite"):
        rows_from(tmp_path, same)


def test_labelled_texts_are_looked_for_too(tmp_path):
    words = [f"w{i}" for i in torch.randint(2000, (4000,)).tolist()]
    (tmp_path / "text.txt").write_text(" ".join(words))
    (tmp_path / "rows.tsv").write_text("one\tlabel\n" + " ".join(words[100:200]) + "\t1\n")
    judged = ClassificationBenchmark(str(tmp_path / "rows.tsv"), columns=["one"])
    found = rows_from(tmp_path, {"perplexity": None, "labelled": {"mine": judged}}, steps=30)
    whole = rows_from(tmp_path, {"perplexity": None, "labelled": {}}, steps=30)
    assert 0 < len(whole) - len(found) <= 3


def test_documents_of_lm_eval_are_looked_for_too(tmp_path):
    words = [f"w{i}" for i in torch.randint(2000, (4000,)).tolist()]
    (tmp_path / "text.txt").write_text(" ".join(words))
    question = " ".join(words[100:200])
    choices = {"text": ["one", "two"], "label": ["A", "B"]}
    rows = [{"id": "0", "question": question, "choices": choices, "answerKey": "A"}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"arc_easy": LmEvalTask(str(tmp_path / "asked.jsonl"))}
    found = rows_from(tmp_path, {"perplexity": None, "labelled": {}, "tasks": asked}, steps=30)
    whole = rows_from(tmp_path, {"perplexity": None, "labelled": {}}, steps=30)
    assert 0 < len(whole) - len(found) <= 3


def test_shares_of_the_calibration_rows_by_part(tmp_path, monkeypatch):
    words = [f"w{i}" for i in torch.randint(2000, (40 * 64,)).tolist()]
    (tmp_path / "judged.txt").write_text(" ".join(words[: 10 * 64]))
    (tmp_path / "rows.tsv").write_text("one\tlabel\n" + " ".join(words[:30]) + " w0 w0 w0\t1\n")
    text = Perplexity(Text(str(tmp_path / "judged.txt")), [64], None)
    labelled = {"mine": ClassificationBenchmark(str(tmp_path / "rows.tsv"), columns=["one"])}
    suite = Suite("tiny", text, tasks={}, labelled=labelled, limit=None, batch_size=1)
    tokenizer, cache = word_tokenizer(2000), Cache(tmp_path / "c")
    ids = torch.tensor(tokenizer(" ".join(words)).input_ids)
    rows = [row(part) for part in ids.split(64)]
    assert suite.shared(rows, tokenizer, cache) == {"text": 10 / 40}
    assert suite.shared(rows[10:], tokenizer, cache) == {}
    monkeypatch.setattr(Perplexity, "reads", None)  # the share is in the cache
    assert suite.shared(rows, tokenizer, cache) == {"text": 10 / 40}
