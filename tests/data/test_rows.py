"""The same rows from every kind of source, and plain errors."""

import gzip
import json

import datasets
import pytest

from pruning.data.labelled import Labelled
from pruning.data.rows import Rows
from pruning.data.text import Text
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
    with pytest.raises(ValueError, match=r"^here\.path=.*empty' cannot be read .*written by"):
        list(Rows(str(tmp_path / "empty")).rows(cache, "here", []))


def written(kind: str, directory, texts: list):
    """Write rows with a column `text` and a label; return the path."""
    path = directory / f"cells{kind}"
    rows = [{"text": text, "label": index} for index, text in enumerate(texts)]
    if kind == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)))
    elif kind == ".json":
        path.write_text("\n [" + ",\n".join(map(json.dumps, rows)) + "]")
    elif kind == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ""])
def test_null_is_left_out_and_counted(kind, tmp_path, cache, caplog):
    path = written(kind, tmp_path, ["a", None, "b", None])
    assert Text(path).documents(cache, "here") == ["a", "b"]
    assert f"here: 2 rows of {path} hold null" in caplog.text
    assert Text(path, distinct=False).documents(cache, "here") == ["a", "b"]
    template = Text(path, template="{label}: {text}").documents(cache, "here")
    assert template == ["0: a", "2: b"]
    caplog.clear()
    labelled = Labelled(path, columns=["text"])
    assert labelled.read(cache, "here") == [{"text": "a", "label": 0}, {"text": "b", "label": 2}]
    assert f"here: 2 rows of {path}" in caplog.text
    assert labelled.read(cache, "here", 1) == [{"text": "a", "label": 0}]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ""])
@pytest.mark.parametrize(
    ("wrong", "said"), [(2.5, r"2\.5 \(float\)"), (["x"], r"\['x'\] \(list\)"), ({"a": 1}, "dict")]
)
def test_what_is_no_text_is_named_with_its_row(kind, wrong, said, tmp_path, cache):
    path = written(kind, tmp_path, [None, wrong])
    where = rf"row 2 of '.*cells{kind}' has .*{said}"
    with pytest.raises(ValueError, match=rf"^here\.column='text': {where}.* is not a text"):
        Text(path).documents(cache, "here")
    with pytest.raises(ValueError, match=rf"^here\.columns='text': {where}"):
        Labelled(path, columns=["text"], label="label").read(cache, "here")
    if not isinstance(wrong, float):  # a number may be part of a text
        with pytest.raises(ValueError, match=rf"^here\.template='text': {where}"):
            Text(path, template="{text}").documents(cache, "here")


@pytest.mark.parametrize("label", [None, "1", [1]])
def test_a_label_is_a_number(label, tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1}\n' + json.dumps({"text": "b", "label": label}))
    with pytest.raises(ValueError, match=r"^here\.label='label': row 2 of .* is not a number"):
        Labelled(str(path), columns=["text"]).read(cache, "here")


@pytest.mark.parametrize("kind", [".csv", ".tsv"])
def test_numbers_are_texts_where_a_sheet_has_texts(kind, tmp_path, cache):
    path = tmp_path / f"rows{kind}"
    lines = [("text", "label"), ("007", "1"), ("1e3", "0")]
    path.write_text("".join({".csv": ",", ".tsv": "\t"}[kind].join(line) + "\n" for line in lines))
    assert Text(str(path)).documents(cache, "here") == ["007", "1e3"]
    found = Labelled(str(path), columns=["text"]).read(cache, "here")
    assert found == [{"text": "007", "label": 1}, {"text": "1e3", "label": 0}]


def test_rows_without_columns(tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n"a text"\n')
    with pytest.raises(ValueError, match=r"^here\.path=.*: row 2 of .* 'a text' \(str\), and has"):
        Text(str(path)).documents(cache, "here")
    path.write_text('{"text": "a"}\n{"body": "a"}\n')
    with pytest.raises(ValueError, match=r"^here\.column='text' is not a column of row 2 .*body"):
        Text(str(path)).documents(cache, "here")
    path.write_text('{"doc": {"text": "a"}}\n{"doc": null}\n')
    with pytest.raises(ValueError, match=r"^here\.within='doc': row 2 of .* has null, .* object"):
        Text(str(path), within="doc").documents(cache, "here")


def damage(kind: str, directory) -> str:
    """Write a file or a folder that cannot be read; return its path."""
    name, _, what = kind.partition(" ")
    path = directory / f"rows{name}"
    if what == "pointer":
        text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        path.write_text(text)
    elif what == "folder":
        path = directory / "folder"
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
        (arrow,) = path.glob("*.arrow")
        arrow.write_bytes(arrow.read_bytes()[:100])
    elif what == "splits":
        path = directory / "folder"
        part = datasets.Dataset.from_list(ROWS)
        datasets.DatasetDict({"test": part, "train": part}).save_to_disk(path)
    elif what == "encoding":
        path.write_bytes("text\nna\u00efve\n".encode("latin-1"))
    elif what == "cut":
        whole = gzip.compress(json.dumps({"text": "x" * 100}).encode())
        if name == ".parquet":
            datasets.Dataset.from_list(ROWS).to_parquet(path)
            whole = path.read_bytes()
        path.write_bytes(whole[:-12])
    else:
        path.write_text('{"text": "a"}\n\n{"text": "b"\n')
    return str(path)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (".txt pointer", "git lfs pull"),
        (".jsonl pointer", "git lfs pull"),
        (".parquet pointer", "git lfs pull"),
        (".csv pointer", "git lfs pull"),
        (" folder", "give a folder of one split"),
        (" splits", r"\['test', 'train'\]\): give a folder of one split"),
        (".txt encoding", "convert it to UTF-8"),
        (".jsonl encoding", "convert it to UTF-8"),
        (".csv encoding", "convert it to UTF-8"),
        (".jsonl.gz cut", "download it again"),
        (".txt.gz cut", "download it again"),
        (".parquet cut", "download it again"),
        (".jsonl damaged", "line 3, column .*: repair it"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(kind, said, tmp_path, cache):
    path = damage(kind, tmp_path)
    with pytest.raises(
        ValueError, match=rf"^here\.path='{path}' cannot be read \(.*{said}"
    ) as info:
        Text(path).documents(cache, "here")
    assert "\n" not in str(info.value)


def test_text_may_have_a_byte_order_mark_and_be_packed(tmp_path, cache):
    (tmp_path / "plain.txt").write_bytes("\ufeffw1 \u00ef".encode())
    assert Text(str(tmp_path / "plain.txt")).documents(cache, "here") == ["w1 \u00ef"]
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress("w1 \u00ef".encode()))
    assert Text(str(tmp_path / "packed.txt.gz")).documents(cache, "here") == ["w1 \u00ef"]
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": "a"}).encode())
    assert Text(str(tmp_path / "rows.jsonl")).documents(cache, "here") == ["a"]
