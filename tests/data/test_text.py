import itertools
import json

import pytest
from datasets import Dataset

from pruning.calibration.calibration import Calibration, Weight
from pruning.data.text import Text
from pruning.system.cache import Cache
from tests.helpers.tiny import word_tokenizer

FIELD = "calibration.text"
DOCUMENTS = ["w1 w2", "w3", "w1 w2", "  \n", "w4 w5 w6", "w7"]
DISTINCT = ["w1 w2", "w3", "w4 w5 w6", "w7"]  # in order, without what is blank


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"body": text, "id": 0}) for text in DOCUMENTS))
    return str(path)


def test_a_text_file_is_one_document(tmp_path, cache):
    path = tmp_path / "wiki.test.raw"
    path.write_text("w1 w2\n\nw3\n")
    assert Text(str(path)).documents(cache, FIELD) == ["w1 w2\n\nw3\n"]


def test_lines_of_json(jsonl, cache):
    assert Text(jsonl, column="body").documents(cache, FIELD) == DISTINCT


def test_a_datasets_folder(tmp_path, cache):
    path = str(tmp_path / "folder")
    Dataset.from_dict({"passage": DOCUMENTS}).save_to_disk(path)
    assert Text(path, column="passage").documents(cache, FIELD) == DISTINCT


def test_ranges_split_the_distinct_documents(jsonl, cache):
    first = Text(jsonl, column="body", stop=0.5).documents(cache, FIELD)
    second = Text(jsonl, column="body", start=0.5).documents(cache, FIELD)
    assert (first, second) == (DISTINCT[:2], DISTINCT[2:])
    assert Text(jsonl, column="body", limit=3).documents(cache, FIELD) == DISTINCT[:2]


def test_all_documents_as_they_are(jsonl, cache):
    text = Text(jsonl, column="body", distinct=False)
    assert text.documents(cache, FIELD) == DOCUMENTS


@pytest.mark.job
def test_a_hub_dataset_without_end_is_read_in_part(cache, monkeypatch, caplog):
    def endless(*_):
        return ({"text": f"document {number}"} for number in itertools.count())

    monkeypatch.setattr(Text, "_load_hub", endless)
    assert len(Text("some/where").documents(cache, FIELD)) == 100_000
    assert "calibration.text.limit=null: only 100000 documents of some/where" in caplog.text
    assert len(Text("some/where", limit=7).documents(cache, FIELD)) == 7


def test_a_hub_dataset_that_breaks_off(cache, monkeypatch):
    def broken(*_):
        yield {"text": "a document"}
        raise ConnectionError("gone")

    monkeypatch.setattr(Text, "_load_hub", broken)
    with pytest.raises(ValueError, match=r"^calibration\.text\.path='some/where' .*Connection"):
        Text("some/where").documents(cache, FIELD)


def test_a_column_that_is_not_there(jsonl, cache):
    with pytest.raises(ValueError, match=r"calibration\.text\.column='text'.*body"):
        Text(jsonl).documents(cache, FIELD)


@pytest.mark.parametrize("name", ["nothing.txt", "./nothing", "~/nothing-there"])
def test_a_file_that_is_not_there(name, cache):
    with pytest.raises(ValueError, match=r"calibration\.text\.path=.*nothing.*does not .*\.txt"):
        Text(name).documents(cache, FIELD)


@pytest.mark.parametrize(("start", "stop"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.8, 0.2)])
def test_an_impossible_range(jsonl, cache, start, stop):
    with pytest.raises(ValueError, match=rf"calibration\.text\.start={start} and .*stop={stop}"):
        Text(jsonl, start=start, stop=stop).documents(cache, FIELD)


def test_a_limit_of_nothing(jsonl, cache):
    with pytest.raises(ValueError, match=r"^calibration\.text\.limit=0 must be at least 1"):
        Text(jsonl, limit=0).documents(cache, FIELD)


def test_a_range_without_text(jsonl, cache):
    with pytest.raises(ValueError, match=r"calibration\.text\.path=.*no text"):
        Text(jsonl, column="body", stop=0.1).documents(cache, FIELD)


def calibration(path: str, **values) -> Calibration:
    settings = {"tokens": 240, "sequence_length": 8, "batch": 2, "held_out": 0.2, "pack": True}
    return Calibration(
        name="text",
        text=Text(path, column="body"),
        weight=Weight.none,
        **(settings | values),
    )


@pytest.fixture
def long(tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [{"body": " ".join(f"w{(d + k) % 125}" for k in range(10 + d))} for d in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("pack", [True, False])
def test_a_share_of_the_tokens_is_held_out(long, cache, pack):
    batches = calibration(long, pack=pack).batches(word_tokenizer(), cache, seed=0)
    held = sum(batch.tokens for batch in batches if batch.held_out)
    tokens = sum(batch.tokens for batch in batches)
    assert tokens >= 240
    assert 0 < held / tokens == pytest.approx(0.2, abs=0.07)  # whole batches of 15
    assert all(batch.ids.shape[0] <= 2 and batch.ids.shape[1] <= 8 for batch in batches)


def test_too_little_text(long, cache):
    with pytest.raises(ValueError, match=r"calibration\.tokens=100000 is more than the \d+ tokens"):
        calibration(long, tokens=100_000).batches(word_tokenizer(), cache, seed=0)


def test_too_few_batches_to_hold_one_out(long, cache):
    with pytest.raises(ValueError, match=r"calibration\.tokens=24 makes 2 of the \d+ batches"):
        calibration(long, tokens=24).batches(word_tokenizer(), cache, seed=0)
