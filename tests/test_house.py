"""One direction of imports, and how long the main line and lists of parameters may be."""

import ast
from dataclasses import fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from pruning.methods.method import PruningContext

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pruning"
FLOORS = (  # from the ground up
    "renamed",
    "system",
    "data",
    "models",
    "calibration",
    "runtimes",
    "latency",
    "tasks",
    "solver",
    "evaluation",
    "results",
    "search",
    "recovery",
    "methods",
    "experiment",
    "composition",
    "reference",
    "config_errors",
    "job",
    "reproduction",
    "api",
    "cli",
)


def modules(root: Path) -> dict[str, Path]:
    """Return the files of a package by the name that they are imported by."""
    parts = {
        path: path.relative_to(root.parent).with_suffix("").parts for path in root.rglob("*.py")
    }
    return {".".join(p[:-1] if p[-1] == "__init__" else p): path for path, p in parts.items()}


def imported(path: Path, name: str, known: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it that is said."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            named |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return (named & known.keys()) - {name, name.partition(".")[0]}


def arrows(root: Path) -> dict[str, set[str]]:
    """Return by module of a package which other modules of it are imported."""
    known = modules(root)
    return {name: imported(path, name, known) for name, path in known.items()}


def floor(module: str) -> str:
    """Return the folder of a module, or its name where it lies in none."""
    return module.split(".")[1]


def upward(graph: dict[str, set[str]]) -> list[str]:
    """List the imports that do not go down."""
    return [
        f"{module} imports {other}"
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if FLOORS.index(floor(module)) < FLOORS.index(floor(other))
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a ring; none where there is no such ring."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return {k: v for k, v in arrows(PACKAGE).items() if k not in ("pruning", "pruning.__main__")}


def test_every_module_lies_in_a_folder_of_the_house(graph):
    assert {floor(module) for module in graph} == set(FLOORS)


def test_no_folder_imports_one_above_it(graph):
    assert upward(graph) == []


def test_no_modules_import_each_other_in_a_circle(graph):
    assert circle(graph) == []


def test_lazy_and_typing_imports_count(tmp_path):
    root = tmp_path / "pruning"
    sources = {
        "__init__": "",
        "system/__init__": "",
        "system/files": "def late():\n    from pruning.data import rows\n",
        "data/__init__": "",
        "data/rows": "if TYPE_CHECKING:\n    from pruning.system.files import write\n",
        "data/text": "from . import rows\nfrom .rows import Rows\nimport pruning.system.files\n",
    }
    for name, source in sources.items():
        (root / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(source)
    found = arrows(root)
    assert found["pruning.data.text"] >= {"pruning.data.rows", "pruning.system.files"}
    assert "pruning.system.files imports pruning.data.rows" in upward(found)
    assert set(circle(found)) == {"pruning.system.files", "pruning.data.rows"}


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> list[Function]:
    """List the functions and methods of a module, inner ones too."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]


def parameters(function: Function) -> list[str]:
    """Name what a function takes, self and cls aside."""
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    return [one.arg for one in every if one is not None and one.arg not in ("self", "cls")]


def identifiers(source: str) -> set[str]:
    """Name what a module binds: parameters, variables, functions, classes and their fields."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg):
            named.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            named.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            named.add(node.attr)
        elif isinstance(node, Function | ast.ClassDef):
            named.add(node.name)
    return named


def sources() -> dict[str, str]:
    """Read every file that a job or a benchmark consists of."""
    paths = [ROOT / "launch.py", *PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def test_no_function_takes_more_than_six_parameters():
    many = {
        f"{path}: {function.name}": parameters(function)
        for path, source in sources().items()
        for function in functions(source)
        if len(parameters(function)) > 6
    }
    assert many == {}


def test_the_shell_fits_on_a_page():
    assert len((ROOT / "launch.py").read_text().splitlines()) <= 60


def test_the_main_line_reads_in_thirty_lines():
    long = {
        function.name: length
        for function in functions((PACKAGE / "job" / "run.py").read_text())
        if (length := (function.end_lineno or 0) - function.lineno + 1) > 30
    }
    assert long == {}


def test_a_method_is_given_six_things():
    assert len(fields(PruningContext)) == 6


def test_nothing_is_named_by_a_word_that_says_nothing():
    empty = {
        f"{path}: {name}"
        for path, source in sources().items()
        for name in identifiers(source) & {"of", "found"}
    }
    assert empty == set()


def test_parameters_and_identifiers_are_seen_wherever_they_are():
    source = (
        "class A:\n    x: int = 0\n    def f(self, a, /, b, *c, d, **e):\n"
        "        async def g(h):\n            self.i = [j for j in h]\n"
    )
    f, g = sorted(functions(source), key=lambda function: function.name)
    assert parameters(f) == ["a", "b", "d", "c", "e"]
    assert parameters(g) == ["h"]
    assert identifiers(source) >= {*"Afgxabcdehij"}
