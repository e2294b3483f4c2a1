"""The same rows from every kind of source, and plain errors."""

import gzip
import json

import datasets
import pytest

from pruning.data.rows import Rows
from pruning.system.cache import Cache

ROWS = [
    {"text": 'an "open quote', "label": 1},
    {"text": "NA", "label": 0},  # a word, not a missing value
    {"text": "tab-free", "label": 2},
]


def write(kind: str, directory) -> str:
    path = directory / f"rows{kind}"
    if kind == ".jsonl.gz":
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in ROWS)
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
    elif kind == ".json":
        path.write_text(json.dumps(ROWS))
    elif kind == ".tsv":
        path.write_text("text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in ROWS))
    elif kind == ".csv":
        datasets.Dataset.from_list(ROWS).to_csv(path)
    elif kind == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return str(path)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".json", ".tsv", ".csv", ".parquet", ""])
def test_rows_are_the_same_wherever_they_are(kind, tmp_path, cache):
    found = Rows(write(kind, tmp_path)).rows(cache, "here", [("label", "label")])
    assert [dict(row) for row in found] == ROWS


def test_a_pattern_takes_all_files_in_order(tmp_path, cache):
    for name in ("train", "dev", "validation"):
        (tmp_path / f"{name}.tsv").write_text(f"text\n{name}\n")
    found = Rows(str(tmp_path / "[td]*.tsv")).rows(cache, "here", [])
    assert [row["text"] for row in found] == ["dev", "train"]


def test_what_is_not_there(tmp_path, cache):
    with pytest.raises(ValueError, match=r"^here\.path='./gone' does not exist: give a file"):
        list(Rows("./gone").rows(cache, "here", []))
    with pytest.raises(ValueError, match=r"^here\.label='y' is not .* \['label', 'text'\]"):
        list(Rows(write(".tsv", tmp_path)).rows(cache, "here", [("label", "y")]))
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(ValueError, match=r"^here\.path=.*text\.txt' holds no rows: give a file"):
        list(Rows(str(tmp_path / "text.txt")).rows(cache, "here", []))
    (tmp_path / "damaged.jsonl").write_text('{"text": "a"}\n{"te')
    with pytest.raises(
        ValueError, match=r"^here\.path=.*damaged\.jsonl' cannot be read \(.*repair"
    ):
        list(Rows(str(tmp_path / "damaged.jsonl")).rows(cache, "here", []))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^here\.path=.*empty' is not a folder written by"):
        list(Rows(str(tmp_path / "empty")).rows(cache, "here", []))
