"""What is imported is declared, what is declared is imported, and each has a tested version."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Return requirements by name, without those of this project's own extras."""
    parsed = (Requirement(line) for line in lines)
    return {canonicalize_name(r.name): r for r in parsed if r.name != PROJECT["name"]}


NEEDED = requirements(PROJECT["dependencies"])
EXTRAS = {
    name: requirement
    for lines in PROJECT["optional-dependencies"].values()
    for name, requirement in requirements(lines).items()
}


def imported(source: str) -> set[str]:
    """Return the top-level modules that a file imports, wherever in it, but of this project."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module))
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"pruning"}


@pytest.fixture(scope="module")
def distributions() -> set[str]:
    """Return the names of the distributions that pruning/ and launch.py import."""
    files = [*(ROOT / "pruning").rglob("*.py"), ROOT / "launch.py"]
    modules = {module for file in files for module in imported(file.read_text())}
    known = packages_distributions()
    missing = {module for module in modules if module not in known}
    # an extra may not be installed: its module is called as its distribution is
    return {canonicalize_name(known[module][0]) for module in modules - missing} | {
        canonicalize_name(module) for module in missing
    }


def test_what_is_imported_is_declared(distributions):
    assert distributions - NEEDED.keys() - EXTRAS.keys() == set()


def test_what_is_declared_is_imported(distributions):
    assert NEEDED.keys() - distributions == {"pillow"}  # wandb.Image needs it undeclared


def test_each_has_a_tested_version_within_its_range():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    tested = {canonicalize_name(name): version for name, version in pins.items()}
    for name, requirement in (NEEDED | EXTRAS).items():
        assert name in tested, f"{name} has no line in constraints.txt"
        assert requirement.specifier.contains(tested[name], prereleases=True), requirement
        assert re.search("[<>=~]", str(requirement.specifier)), f"{name} has no range"


def test_imports_are_read_wherever_they_are():
    source = """
import numpy.linalg as la, json
if TYPE_CHECKING:
    from pandas.core import frame
def late():
    import scipy
from . import here
from pruning.data import rows
"""
    assert imported(source) == {"numpy", "pandas", "scipy"}
