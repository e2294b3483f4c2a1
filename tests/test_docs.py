"""README and docs: links lead somewhere, lines are short, commands compose, the tree is whole.

`make docs` writes the tree of docs/code.md anew, by `python -m tests.test_docs`.
"""

import ast
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from pruning.composition import compose

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "sweeps.md"]
CODE = ROOT / "docs" / "code.md"
BEGIN, END = "<!-- tree: written by make docs -->\n", "<!-- end of tree -->"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> list[tuple[int, str]]:
    """Return the numbered lines of a page without code blocks and tables."""
    lines, fenced, above = [], False, ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith(("|", "    ")):
            lines.append((number, line))
        elif not fenced and line.startswith("    ") and above and not above.startswith("    "):
            lines.append((number, line))  # the continuation of a list item
        above = line
    return lines


def anchors(page: Path) -> set[str]:
    """Return the fragments that headings of a page can be linked by, as GitHub makes them."""
    heads = [line.lstrip("#").strip() for _, line in prose(page) if line.startswith("#")]
    kept = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return {head.replace(" ", "-") for head in kept}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page):
    broken = []
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_python_file_that_is_named_exists(page):
    named = set(re.findall(r"(?<![\w/.<>])((?:\w+/)+\w+\.py)\b", page.read_text()))
    assert not {p for p in named if not ((ROOT / p).exists() or (ROOT / "pruning" / p).exists())}


def test_a_broken_heading_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Cache, disk, W&B\n\n    # a comment\n\n## 8. The closed loop\n")
    assert anchors(page) == {"cache-disk-wb", "8-the-closed-loop"}


def test_the_readme_is_short_and_begins_with_a_command_and_a_picture():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert any(line.startswith("    python launch.py") for line in lines[:8])
    assert any(line.startswith("![") for line in lines[:10])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_have_at_most_100_characters(page):
    assert not [f"{page.name}:{n}" for n, line in prose(page) if len(line) > 100]


def commands(page: Path) -> list[str]:
    """Return the commands of launch.py in a page, continued lines joined."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("python launch.py")]


def overrides(command: str) -> list[str] | None:
    """Return the overrides of a command, of a sweep the first job's; None where nothing runs."""
    words = shlex.split(command, comments=True)[2:]
    if any(word.startswith("-") and word != "-m" for word in words):
        return None
    given = [w for w in words if w != "-m" and not w.startswith(("hydra.", "hydra/"))]
    for index, parsed in enumerate(OverridesParser.create().parse_overrides(given)):
        if parsed.is_sweep_override():
            given[index] = f"{parsed.key_or_group}={next(iter(parsed.sweep_string_iterator()))}"
    return given


@pytest.mark.parametrize("page", COMMANDS, ids=name)
def test_commands_of_launch_compose(page):
    found = {command: overrides(command) for command in commands(page)}
    assert any(found.values())
    wrong = {}
    for command, given in found.items():
        try:
            if given is not None:
                compose(given)
        except (ValueError, HydraException, OmegaConfBaseException) as error:
            wrong[command] = str(error)
    assert not wrong


def test_a_command_that_names_no_field_does_not_compose():
    given = overrides("python launch.py -m hardware.sequences=1,2  # 512 tokens")
    assert given == ["hardware.sequences=1"]
    with pytest.raises(HydraException, match="sequences"):
        compose(given)


def test_options_of_the_quickstart_are_those_of_conf():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs/quickstart.md").read_text(), re.M)
    recipes = re.search(r"# recipes: ([\w, \n#]*)\n    python", (COMMANDS[1]).read_text())
    assert recipes is not None
    named = {group: set(re.findall(r"`([\w.\-]+)`", options)) for group, options in rows}
    named["experiment"] = set(re.findall(r"\w+", recipes[1]))
    there = {
        folder.name: {file.stem for file in folder.glob("*.yaml")}
        for folder in (ROOT / "conf").iterdir()
        if folder.is_dir() and folder.name != "hydra"
    }
    wrong = {group: named.get(group, set()) ^ stems for group, stems in there.items()}
    wrong = {group: options for group, options in wrong.items() if options}
    assert not wrong, "in conf/ and not in the tables of docs/quickstart.md, or the other way round"
    assert named.keys() == there.keys()


def what(path: Path) -> str:
    """Return the first sentence or line of a file's docstring."""
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    return said.split("\n")[0]


def tree() -> str:
    """Draw the files of the package and of benchmarks/, each with what its docstring says."""
    lines = []

    def walk(folder: Path, depth: int) -> None:
        indent = "    " + "  " * depth
        lines.append(f"{indent}{folder.name + '/':<{28 - 2 * depth}}{what(folder / '__init__.py')}")
        for file in sorted(folder.glob("*.py")):
            if file.name != "__init__.py":
                lines.append(f"{indent}  {file.name:<{26 - 2 * depth}}{what(file)}")
        for inner in sorted(folder.iterdir()):
            if (inner / "__init__.py").exists():
                walk(inner, depth + 1)

    walk(ROOT / "pruning", 0)
    lines.append("    benchmarks/")
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        lines.append(f"      {file.name:<26}{what(file).removesuffix(' One JSON line.')}")
    return "\n" + "\n".join(lines) + "\n\n"


def test_the_tree_is_that_of_the_code():
    assert tree() == CODE.read_text().partition(BEGIN)[2].partition(END)[0], (
        "stale: run `make docs`"
    )


if __name__ == "__main__":
    before, _, rest = CODE.read_text().partition(BEGIN)
    CODE.write_text(before + BEGIN + tree() + END + rest.partition(END)[2])
