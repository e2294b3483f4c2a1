"""`docs/configuration.md`: every config group, option and field, from the dataclasses."""

import ast
import inspect
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum, EnumType
from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from pruning.composition import CONF, SCHEMAS
from pruning.experiment import Experiment

HEAD = """# Configuration

This page is written by `make docs`. The dataclasses are the source: edit those.

A job is an `Experiment`. Choose an option of a group with `group=option`, and set a field with
`group.field=value`: `python launch.py method=slimgpt method.smallest=8 speedup=2`. In Python the
same options are objects: `SlimGPT(smallest=8)`. A field that needs a value says so. Every option
has a `name` too, by which results and directories are called: `model.name=mine`.
"""

RECIPES = """Recipes set several groups, and what a multirun goes through:
`python launch.py -m experiment=frontier`."""


def reference() -> str:
    """Return the page."""
    parts = [HEAD, "## Experiment", _table(Experiment, skip=set(SCHEMAS))]
    nested: dict[type, None] = {}
    for group, kinds in SCHEMAS.items():
        parts += [f"## {group}", _options(group)]
        for kind in dict.fromkeys(kinds.values()):
            parts += [f"### {kind.__name__}", _summary(kind)]
            if rows := _table(kind, skip={"name"}):
                parts.append(rows)
            nested |= dict.fromkeys(_inner(kind))
    parts += ["## experiment", RECIPES, _options("experiment")]
    parts.append("## Parts of options")
    for kind in _closure(nested):
        parts += [f"### {kind.__name__}", _summary(kind), _table(kind)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _options(group: str) -> str:
    """Tabulate the YAML files of a group, each with the comment that it begins with."""
    lines = ["| option | |", "|---|---|"]
    for path in sorted((CONF / group).glob("*.yaml")):
        said = _first_comment(path)
        if group == "model" and not said:
            given = OmegaConf.load(path)
            said = f"`{given.base_model if 'base_model' in given else given.path}`"
        lines.append(f"| `{group}={path.stem}` | {_escaped(said)} |")
    return "\n".join(lines)


def _first_comment(path: Path) -> str:
    """Return the comment that a file begins with, behind what is for Hydra."""
    first = next(line for line in path.read_text().splitlines() if line != "# @package _global_")
    return first.removeprefix("# ") if first.startswith("# ") else ""


def _table(kind: type, skip: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """Tabulate the fields of a dataclass; nothing where it has none."""
    said, hints = comments(kind), get_type_hints(kind)
    rows = [
        f"| `{f.name}` | {_type(hints[f.name])} | {_default(f)} | {_escaped(said[f.name])} |"
        for f in fields(kind)  # type: ignore[arg-type]
        if f.name not in skip
    ]
    return "\n".join(["| field | type | default | |", "|---|---|---|---|", *rows]) if rows else ""


def _summary(kind: type) -> str:
    """Return the docstring of a class, without its indentation."""
    return inspect.cleandoc(kind.__doc__ or "")


def _type(hint: Any) -> str:
    """Write a type as a user of YAML or Python reads it."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{member.name}`" for member in hint)
    if get_origin(hint) is list and isinstance(member := get_args(hint)[0], EnumType):
        return f"list of {_type(member)}"
    if inner := [part for part in get_args(hint) if is_dataclass(part)]:
        return f"[{inner[-1].__name__}](#{inner[-1].__name__.lower()})" + (  # type: ignore[union-attr]
            " or null" if type(None) in get_args(hint) else ", by name"
        )
    if is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"  # type: ignore[union-attr]
    name = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return f"`{name}`".replace(" | None", " or null").replace("|", "\\|")


def _default(field: Field) -> str:
    """Write the default of a field as YAML has it."""
    if field.name == "cache":
        return "`$PRUNING_CACHE`, else `~/.cache/pruning`"
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value == "???":
        return "needed" if field.name != "speedup" else "`1.25`; of `method=dense` `1`"
    if is_dataclass(value):
        return "see there"
    if isinstance(value, list) and any(isinstance(member, Enum) for member in value):
        value = f"[{', '.join(member.name for member in value)}]"
    text = str(value)
    if isinstance(value, list):
        text = text.replace("inf", ".inf").replace("None", "null")
    text = {"None": "null", "True": "true", "False": "false"}.get(text, text)
    return f"`{text}`" if text else '`""`'


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _inner(kind: type) -> Iterator[type]:
    """Yield the dataclasses that fields hold."""
    for hint in get_type_hints(kind).values():
        for part in (hint, *get_args(hint)):
            if isinstance(part, type) and is_dataclass(part):
                yield part


def _closure(kinds: dict[type, None]) -> list[type]:
    """Return dataclasses with those within them, each once."""
    todo, seen = list(kinds), {}
    while todo:
        kind = todo.pop(0)
        if kind not in seen:
            seen[kind] = None
            todo += _inner(kind)
    return list(seen)


def comments(kind: type) -> dict[str, str]:
    """Return the comment of every field: behind it, or in the lines above it; own ones first."""
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            own = _own_comments(base)
            said |= {name: text for name, text in own.items() if text or name not in said}
    return said


def _own_comments(kind: type) -> dict[str, str]:
    """Return the comments of the fields that a class itself defines."""
    source = textwrap.dedent(inspect.getsource(kind))
    notes: dict[int, tuple[bool, str]] = {}
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            text = re.sub(r"\s*#?\s*type: ignore\S*\s*#?\s*", "", token.string)
            notes[token.start[0]] = alone, text.lstrip("# ").strip()
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    said = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = [
                notes[n][1] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in notes
            ]
            above = node.lineno - 1
            while notes.get(above, (False, ""))[0]:
                lines.insert(0, notes[above][1])
                above -= 1
            said[node.target.id] = " ".join(filter(None, lines))
    return said


if __name__ == "__main__":
    print(reference(), end="")
