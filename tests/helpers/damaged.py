"""Files that are damaged, empty, of other kinds, or say what is not so: each under its own name."""

import gzip
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file

from tests.helpers.encoders import write_encoders, write_rows
from tests.helpers.families import llama
from tests.helpers.gguf_file import write_gguf
from tests.helpers.place import WORDS, Place
from tests.helpers.tiny import word_tokenizer

WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n"


class Tampered:
    """Makes it unsafe to unpickle: it would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Say what unpickling would call."""
        return Path.touch, (Path("/tmp/was-unpickled"),)


def write_damaged(place: Place) -> Path:
    """Write all of them beside the model of a place; return the directory."""
    root = place.root / "damaged"
    root.mkdir()
    _labelled(*write_encoders(place), root)
    _models(place.root / "dense", root)
    _packed(place.root / "dense", root)
    _rows((place.root / "text.txt").read_text(), root)
    _tables(root)
    return root


def _copy(model: Path, name: str, **files: str | bytes | None) -> Path:
    """Copy a model under another name, with some files replaced or, where None, left out."""
    there = model.parent / "damaged" / name
    shutil.copytree(model, there, copy_function=os.link)
    for file, content in files.items():
        path = there / file
        path.unlink(missing_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif content is not None:
            path.write_bytes(content)
    return there


def _config(model: Path, name: str, **values: Any) -> None:
    config = json.loads((model / "config.json").read_text()) | values
    _copy(model, name, **{"config.json": json.dumps(config)})


def _weights(model: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    there, tensors = _copy(model, name, **{WEIGHTS: None}), load_file(model / WEIGHTS)
    change(tensors)
    save_file(tensors, there / WEIGHTS, metadata={"format": "pt"})


def _models(dense: Path, root: Path) -> None:
    """Break copies of a decoder, each in its own way."""
    weights, bert = (dense / WEIGHTS).read_bytes(), root.parent / "bert"
    _weights(dense, "headless", lambda t: t.pop("lm_head.weight"))
    _weights(dense, "spare", lambda t: t.update({"extra.weight": torch.ones(3)}))
    _weights(dense, "nan", lambda t: t[UP].view(-1)[7].fill_(torch.nan))
    _weights(dense, "infinite", lambda t: t[UP].view(-1)[7].fill_(torch.inf))
    _weights(dense, "large", lambda t: t["model.layers.1.mlp.down_proj.weight"].mul_(1e4))
    _copy(dense, "cut", **{WEIGHTS: weights[: len(weights) // 2]})
    _copy(dense, "emptied", **{WEIGHTS: b""})
    _copy(dense, "huge_header", **{WEIGHTS: b"\xff" * 7 + b"\x00" + weights[8:]})
    _copy(dense, "no_weights", **{WEIGHTS: None})
    _copy(dense, "pointer", **{WEIGHTS: POINTER})
    index = {"metadata": {}, "weight_map": {UP: "model-00001-of-00002.safetensors"}}
    shards = f"{WEIGHTS}.index.json"
    _copy(dense, "no_shard", **{WEIGHTS: None, shards: json.dumps(index)})
    _copy(dense, "no_map", **{WEIGHTS: None, shards: '{"metadata": {}}'})
    _copy(dense, "bad_pickle", **{WEIGHTS: None, "pytorch_model.bin": b"PK\x03\x04 and no more"})
    tampered = pickle.dumps({"weight": Tampered()})
    _copy(dense, "tampered", **{WEIGHTS: None, "pytorch_model.bin": tampered})
    _copy(dense, "no_config", **{"config.json": None})
    _copy(dense, "cut_config", **{"config.json": '{"model_type": "llama", '})
    _copy(dense, "list_config", **{"config.json": "[]"})
    _copy(dense, "binary_config", **{"config.json": b"\xff\xfe\x00"})
    tokenizer = {"tokenizer.json": None, "tokenizer_config.json": None}
    _copy(dense, "no_tokenizer", **tokenizer)
    _copy(dense, "cut_tokenizer", **{"tokenizer.json": '{"version": "1.0"'})
    _config(dense, "quantised", quantization_config={"quant_method": "gptq", "bits": 4})
    _config(dense, "fp8", quantization_config={"quant_method": "fp8"})
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    _config(dense, "bitsandbytes", quantization_config=four)
    _config(dense, "unknown_family", model_type="nonesuch")
    _config(dense, "no_family", model_type=None)
    _config(dense, "wide", hidden_size=256)
    _config(dense, "narrow", intermediate_size=512)
    _config(dense, "deep", num_hidden_layers=5)
    _config(dense, "no_layers", num_hidden_layers=0)
    _config(dense, "odd_heads", num_attention_heads=3)
    _config(dense, "no_heads", num_attention_heads=0)
    _config(dense, "worded", hidden_size="many")
    _config(dense, "own_code", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.M"})
    for name in ("t5", "mamba", "gpt_oss", "vit"):
        _config(dense, name, model_type=name, architectures=None)
    _config(bert, "classes_that_differ", id2label={str(i): str(i) for i in range(5)})
    grown = _copy(dense, "grown", **tokenizer)
    word_tokenizer(WORDS + 2).save_pretrained(grown)
    tokenizer_of_tasks = word_tokenizer(WORDS)
    tokenizer_of_tasks.eos_token = "<s>"  # which lm-eval's tasks need
    tokenizer_of_tasks.save_pretrained(_copy(dense, "ending", **tokenizer))
    (root / "empty").mkdir()
    (root / "loop").symlink_to(root / "loop")


def _labelled(rows: list[dict], asked: list[dict], root: Path) -> None:
    """Write rows whose labels or answers are wrong."""
    changes: dict[str, Callable[[int, dict], dict]] = {
        "label_beyond": lambda i, row: row | {"label": 3 if i == 7 else row["label"]},
        "label_below": lambda i, row: row | {"label": -1 if i == 7 else row["label"]},
        "label_worded": lambda i, row: row | {"label": "good"},
        "label_fraction": lambda i, row: row | {"label": 0.5},
        "label_null": lambda i, row: row | {"label": None},
        "no_label": lambda i, row: {"text": row["text"]},
        "text_null": lambda i, row: row | {"text": None},
    }
    for name, change in changes.items():
        changed = [change(i, row) for i, row in enumerate(rows)]
        write_rows(root / f"{name}.jsonl", changed)
    wrong = {"elsewhere": ["w999"], "number": 7, "no_start": [{"text": "w1"}]}
    for name, answers in wrong.items():
        write_rows(root / f"answer_{name}.jsonl", [row | {"answers": answers} for row in asked])


def _packed(dense: Path, root: Path) -> None:
    """Write GGUF files and wheels."""
    write_gguf(llama(tie_word_embeddings=True), root / "whole.gguf")
    whole = (root / "whole.gguf").read_bytes()
    (root / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (root / "cut_header.gguf").write_bytes(whole[:100])
    (root / "other.gguf").write_bytes(b"GGUF of another kind")
    (root / "none.gguf").write_bytes(b"no such thing")
    (root / "empty.gguf").write_bytes(b"")
    (root / "lfs.gguf").write_text(POINTER)
    write_gguf(llama(), root / "lacking.gguf", leave_out="model.layers.1.mlp.up_proj.weight")
    (root / "family.gguf").write_bytes(whole.replace(b"llama", b"lxxma"))
    wheels = root / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tinydata-1.0-py3-none-any.whl", "w") as wheel:
        about = "tinydata-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
        wheel.writestr("tinydata/text.txt", "w1 w2 w3")
    (wheels / "cutdata-1.0-py3-none-any.whl").write_bytes(b"PK\x03\x04 and no more")


def _rows(text: str, root: Path) -> None:
    """Write files of text and of rows."""
    words = text.split()
    words[::9] = ["w126"] * len(words[::9])
    (root / "grown.txt").write_text(" ".join(words))
    (root / "rows.jsonl").write_text('{"body": "w1 w2", "number": 7}\n')
    (root / "latin.txt").write_bytes(b"w1 caf\xe9 w2")
    (root / "utf16.txt").write_bytes(text.encode("utf-16"))
    (root / "binary.jsonl").write_bytes(bytes(range(256)))
    (root / "empty.txt").write_text("")
    (root / "blank.txt").write_text(" \n\t\n")
    (root / "empty.jsonl").write_text("")
    (root / "cut.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w3 ')
    (root / "cut.json").write_text('[{"text": "w1 w2"}, ')
    (root / "lists.jsonl").write_text("[1]\n[2]\n")
    write_rows(root / "numbers.jsonl", [1, 2])
    write_rows(root / "texts.jsonl", [{"text": "w1 w2 w3 w4"}] * 9)
    (root / "lfs.jsonl").write_text(POINTER)
    packed = gzip.compress(b'{"text": "w1 w2"}\n' * 999)
    (root / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (root / "plain.jsonl.gz").write_text('{"text": "w1 w2"}\n')
    (root / "cut.parquet").write_bytes(b"PAR1 and no more")
    (root / "ragged.csv").write_text("text,label\nw1,1\nw2,2,3,4\n")
    (root / "empty.csv").write_text("")
    (root / "sheet.xlsx").write_bytes(b"PK\x03\x04\xff\xfe")
    split = Dataset.from_list([{"text": "w1"}])
    DatasetDict({"train": split, "test": split}).save_to_disk(str(root / "splits"))
    split.save_to_disk(str(root / "gone"))
    for part in (root / "gone").glob("*.arrow"):
        part.unlink()
    Dataset.from_dict({"text": []}).save_to_disk(str(root / "no_rows"))
    write_rows(root / "choices.jsonl", [{"question": "w1", "right": 0}])
    choices = {"text": ["w2", "w3"], "label": ["A", "B"]}
    science = {"id": "1", "question": "w1", "choices": choices, "answerKey": "B"}
    write_rows(root / "science.jsonl", [science] * 4)


def _tables(root: Path) -> None:
    """Write what is no latency table, and no result."""
    (root / "table.json").write_text('{"schema": 1, "parts": ')
    (root / "schema.json").write_text('{"schema": 99}')
    (root / "list.json").write_text("[]")
    (root / "bare.json").write_text('{"schema": 1, "parts": {}}')
    level = {"schema": 1, "parts": {"ffn": {"wide": 1.0}}, "rest": 1, "blocks": 3, "spread": 1}
    (root / "level.json").write_text(json.dumps(level | {"dense": 9}))
    (root / "times.csv").write_text("a,b\n1,2\n")
    for name, content in (("cut", '{"schema": 1, '), ("other", '{"schema": 7}'), ("list", "[]")):
        job = root / "studies" / name / "job"
        job.mkdir(parents=True)
        (job / "result.json").write_text(content)
