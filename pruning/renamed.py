"""Fields of the config that had other names: in old overrides, and in old results."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

# by config path, `*` for a name of the user's; a table of CHANGELOG.md has them too
RENAMED = {
    "recovery.sequence": "recovery.max_length",
    "recovery.batch": "recovery.batch_size",
    "recovery.accumulate": "recovery.gradient_accumulation_steps",
    "recovery.rate": "recovery.learning_rate",
    "recovery.warmup": "recovery.warmup_ratio",
    "recovery.shape": "recovery.lr_scheduler_type",
    "recovery.clip": "recovery.max_grad_norm",
    "recovery.checkpointing": "recovery.gradient_checkpointing",
    "recovery.save": "recovery.save_steps",
    "recovery.watch": "recovery.eval_steps",
    "recovery.launch": "recovery.launcher",
    "method.batch": "method.batch_size",
    "method.rate": "method.learning_rate",
    "method.gate_rate": "method.gate_learning_rate",
    "method.multiplier_rate": "method.multiplier_learning_rate",
    "method.clip": "method.max_grad_norm",
    "method.save": "method.save_steps",
    "task.sequence": "task.max_length",
    "task.batch": "task.batch_size",
    "task.rate": "task.learning_rate",
    "task.save": "task.save_steps",
    "suite.batch": "suite.batch_size",
    "suite.questions.*.sequence": "suite.questions.*.max_length",
    "suite.questions.*.longest": "suite.questions.*.max_answer_length",
    "hardware.sequence": "hardware.sequence_length",
    "hardware.tokens": "hardware.max_new_tokens",
    "hardware.of": "hardware.counts",
    "calibration.sequence": "calibration.sequence_length",
    "search.sequence": "search.sequence_length",
}
REPLACED = {"hardware.compile": "runtime=torch_compile"}  # by an option of another group


def today(path: str) -> str | None:
    """Return what an old config path is called now; None for any other path."""
    for old, new in RENAMED.items():
        if fnmatchcase(path, old):
            return f"{path.rpartition('.')[0]}.{new.rpartition('.')[2]}"
    return REPLACED.get(path)


def update_(config: dict[str, Any]) -> None:
    """Give an old resolved config the names of today; one of today stays as it is."""
    if "sequence" not in (config.get("calibration") or {}):  # every old config has it
        return
    for old, new in RENAMED.items():
        *path, name = old.split(".")
        for node in _nodes(config, path):
            if name in node:
                node[new.rpartition(".")[2]] = node.pop(name)
    compiled = (config.get("hardware") or {}).pop("compile", False)
    config.setdefault("runtime", {"name": "torch_compile" if compiled else "torch"})


def _nodes(node: Any, path: list[str]) -> Iterator[dict[str, Any]]:
    """Walk the dictionaries at a path below a node."""
    if not isinstance(node, dict):
        return
    if not path:
        yield node
    for key in node if path[:1] == ["*"] else path[:1]:
        yield from _nodes(node.get(key), path[1:])
