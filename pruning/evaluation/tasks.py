"""lm-eval tasks on a model in memory, with documents from wherever the suite says.

lm-eval's own task definitions (prompts, choices, metrics) are used as installed: a generated YAML
per task includes the installed one and replaces only where its documents come from.
"""

import logging
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache as memoize
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from pruning.evaluation.documents import documents, replace_documents
from pruning.evaluation.part import Candidate, Measured, digest_of
from pruning.evaluation.specs import LmEvalData
from pruning.system.cache import Cache

TASKS = Path(lm_eval.__file__).parent / "tasks"
BOOTSTRAP = 100  # resamplings for the few metrics whose standard error has no closed form


def evaluate_task(name: str, task: LmEvalData, candidate: Candidate) -> Measured:
    """Return `<task>/<metric>` of one task of lm-eval, or of a folder or group of them."""
    with quiet():
        members, where = expand(name, task), f"suite.tasks.{name}"
        loaded = load_all(members, candidate.cache, where)
        # HFLM gives the tokenizer a padding token and ties weights anew: let it have a copy
        make: Any = HFLM  # its decorators hide their signatures, as evaluate()'s does
        lm = make(
            pretrained=candidate.model,
            backend="causal",
            tokenizer=deepcopy(candidate.tokenizer),
            batch_size=candidate.batch,  # evaluate() and simple_evaluate() ignore theirs
        )
        # not simple_evaluate(), which seeds every generator of the process and runs nvidia-smi,
        # git and pip for its record; the task defaults below are all that it would add
        for own in loaded["tasks"].values():
            _check_answer(own, where)
            if task.shots is not None or own.get_config("num_fewshot") is None:
                own.set_config(key="num_fewshot", value=task.shots or 0)
            own.set_fewshot_seed(seed=1234)  # lm-eval's own default
        which: dict[str, Any] = {"limit": candidate.limit}
        if candidate.seed is not None:
            numbers = {
                member: candidate.chosen(len(own.eval_docs))
                for member, own in loaded["tasks"].items()
            }
            which = {"samples": numbers}
        evaluate: Any = lm_eval.evaluate
        report = evaluate(
            lm=lm,
            task_dict=loaded,
            **which,
            bootstrap_iters=BOOTSTRAP,
            log_samples=candidate.samples > 0,
        )
    assert report is not None, "lm-eval returns None on ranks other than 0 only"
    results = {
        f"{member}/{metric_name(key)}": float(value)
        for member, metrics in report["results"].items()
        for key, value in metrics.items()
        if "," in key and isinstance(value, int | float)  # the rest is alias, sample count, "N/A"
    }
    for member, own in loaded["tasks"].items():
        for metric in ("acc", "acc_norm"):
            if f"{member}/{metric}" in results and own.OUTPUT_TYPE == "multiple_choice":
                results[f"{member}/{metric}_chance"] = chance(own)
    if set(members) != {name}:
        sizes = {member: len(_choices(loaded["tasks"][member])) for member in members}
        results = pooled(name, sizes, results)
    asked = (
        (request.args, request.doc) for own in loaded["tasks"].values() for request in own.instances
    )
    kept = [
        {"task": member, **sample(entry)}
        for member, entries in report.get("samples", {}).items()
        for entry in entries[: candidate.samples]
    ]
    return Measured(results, {name: digest_of(asked)}, kept)


def sample(entry: dict[str, Any]) -> dict[str, Any]:
    """Return of what lm-eval logs of a document the prompts, the answers and the metrics."""
    return {
        "document": entry["doc_id"],
        "prompts": [[*request] for request in entry["arguments"]],
        "answers": entry["filtered_resps"],
        "target": entry["target"],
        **{metric: entry[metric] for metric in entry["metrics"]},
    }


def _check_answer(task: Any, where: str) -> None:
    """Raise ValueError where the right answer is no choice: lm-eval counts that as wrong."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
        return
    document = next(iter(task.eval_docs))
    choices, answer = task.doc_to_choice(document), task.doc_to_target(document)
    for one in answer if isinstance(answer, list) else [answer]:
        if one not in (choices if isinstance(one, str) else range(len(choices))):
            raise ValueError(
                f"{where}: the right answer {one!r} of the first document is not one of {choices}: "
                f"check that it has the columns of that task, or name them in {where}.columns"
            )


def check(task: LmEvalData, where: str, cache: Cache) -> None:
    """Raise ValueError where the documents of a task cannot be had; `where` is its config path."""
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        for name, member in expand(where.rpartition(".")[2], task).items():
            if member.path is None:
                load(name, member, cache, Path(scratch), where)
            for option in ("path", "examples"):
                if getattr(member, option):
                    documents(member, option, cache, where)


def texts(name: str, task: LmEvalData, cache: Cache) -> list[str]:
    """Return all texts in the documents that a task evaluates on, each once."""
    seen: dict[str, None] = {}

    def walk(value: Any) -> None:
        if isinstance(value, str):
            seen[value] = None
        elif isinstance(value, Mapping):
            walk([*value.values()])
        elif isinstance(value, list | tuple):
            for part in value:
                walk(part)

    with quiet():
        loaded = load_all(expand(name, task), cache, f"suite.tasks.{name}")
    for own in loaded["tasks"].values():
        walk([*own.eval_docs])
    return list(seen)


def expand(name: str, task: LmEvalData) -> dict[str, LmEvalData]:
    """Return the single tasks of lm-eval that one task of a suite stands for, itself as a rule.

    With `folder` these are all in that folder of lm-eval's tasks; `{dataset_name}` in a path is
    then what lm-eval calls the data of each.
    """
    if task.folder is None:
        return {name: task}
    tasks = {}
    for path in sorted((TASKS / task.folder).glob("*.yaml")):
        definition = load_yaml(path, resolve_func=False)
        if isinstance(child := definition.get("task"), str):
            paths = (
                given and given.replace("{dataset_name}", definition["dataset_name"])
                for given in (task.path, task.examples)
            )
            tasks[child] = replace(task, **dict(zip(("path", "examples"), paths, strict=True)))
    if not tasks:
        raise ValueError(
            f"suite.tasks.{name}.folder={task.folder!r} is no folder of lm-eval with tasks "
            "in it: give one such as mmlu/default"
        )
    return tasks


def pooled(name: str, sizes: dict[str, int], metrics: dict[str, float]) -> dict[str, float]:
    """Put the metrics of all members in the place of theirs, weighted by their documents.

    Where members have too few for errors of their own, an accuracy has that of the whole.
    """
    total = sum(sizes.values())
    kept = {key: value for key, value in metrics.items() if key.split("/")[0] not in sizes}
    for metric in dict.fromkeys(key.split("/")[1] for key in metrics if key not in kept):
        shares = [(n / total, metrics[f"{child}/{metric}"]) for child, n in sizes.items()]
        if metric.endswith("_stderr"):
            kept[f"{name}/{metric}"] = math.sqrt(sum((n * error) ** 2 for n, error in shares))
        else:
            kept[f"{name}/{metric}"] = sum(n * value for n, value in shares)
    for metric in (f"{name}/acc", f"{name}/acc_norm"):
        if metric in kept and f"{metric}_stderr" not in kept and total > 1:
            variance = kept[metric] * (1 - kept[metric]) / (total - 1)
            kept[f"{metric}_stderr"] = math.sqrt(variance)
    return kept


def chance(task: Any) -> float:
    """Return the expected accuracy of guessing: the mean of 1 / choices over the documents."""
    counts = _choices(task).values()
    return sum(1 / count for count in counts) / len(counts)


def _choices(task: Any) -> Counter[int]:
    """Count the choices of each document that was evaluated."""
    asked = {(instance.doc_id, instance.idx) for instance in task.instances}
    return Counter(document for document, _ in asked)


def metric_name(key: str) -> str:
    """Turn lm-eval's `metric,filter` into `metric`, or `filter_metric` where there is a filter."""
    metric, _, filtered = key.partition(",")
    return metric if filtered == "none" else f"{filtered}_{metric}"


def load_all(members: dict[str, LmEvalData], cache: Cache, where: str) -> dict[str, Any]:
    """Return what lm-eval loads for several tasks, as one."""
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name, member in members.items():
            part = load(name, member, cache, Path(scratch), where)
            for kind in loaded:
                loaded[kind] |= part.get(kind, {})
    return loaded


def load(name: str, task: LmEvalData, cache: Cache, scratch: Path, where: str) -> dict[str, Any]:
    """Return what lm-eval's TaskManager loads for one task, its documents in memory.

    `where` is the config path that errors name.
    """
    installed = find_installed(name, task.folder)
    if installed is None:
        return load_group(name, task)
    definition: dict[str, Any] = {"include": str(installed), "task": name}
    if task.path is not None:
        own = load_yaml(installed, resolve_func=False)
        definition |= replace_documents(task, own, cache, where)
    path = scratch / f"{name}.yaml"
    path.write_text(yaml.safe_dump(definition))
    try:
        return dict(TaskManager(include_defaults=False).load(str(path)))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        remedy = (
            f"give {where}.path a local file or datasets folder, or remove it with '~{where}'"
            if task.path is None
            else f"check that {where}.path={task.path!r} has the columns of that task"
        )
        raise ValueError(
            f"{where} could not be loaded ({type(error).__name__}: {reason}): {remedy}"
        ) from error


def load_group(name: str, task: LmEvalData) -> dict[str, Any]:
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


def find_installed(name: str, folder: str | None = None) -> Path | None:
    """Return the YAML that defines a single task of lm-eval, without reading them all."""
    says = re.compile(rf"^(['\"]?)task\1:\s*(['\"]?){re.escape(name)}\2\s*$", re.MULTILINE)
    paths = sorted(
        (TASKS / (folder or "")).rglob("*.yaml"), key=lambda path: (path.stem != name, path)
    )
    return next((path for path in paths if says.search(path.read_text(errors="ignore"))), None)


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
