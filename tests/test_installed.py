"""What `pip install .` leaves: conf/ inside the package, the Python way in, and pruning-launch."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
import pruning
from examples_of_the_wheel import toy
assert pruning.__file__.startswith(sys.argv[1]), pruning.__file__
model, tokenizer, choices = toy()
pruned = pruning.prune(model, tokenizer, speedup=1.1, **choices)
model.save_pretrained("dense")
tokenizer.save_pretrained("dense")
print(pruned.save("from_python") / "model")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Build the wheel from a copy, install it into a folder of its own, and leave the checkout."""
    where = tmp_path_factory.mktemp("installed")
    source, site = where / "source", where / "site"
    left_out = shutil.ignore_patterns(".*", "outputs", "multirun", "build", "*.egg-info", "docs")
    shutil.copytree(ROOT, source, ignore=left_out)
    shutil.copy(ROOT / "examples" / "prune_from_python.py", where / "examples_of_the_wheel.py")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    for words in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", where, source],
        [
            "install",
            "--no-deps",
            "--no-index",
            "--target",
            site,
            "--find-links",
            where,
            "inference-aware-pruning",
        ],
    ):
        subprocess.run([*pip, *words], check=True, capture_output=True, text=True)
    return where


def run(place: Path, *words: object) -> str:
    """Run Python with the installed package in front, from another directory; return its output."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env={
            "PYTHONPATH": f"{place / 'site'}:{place}",
            "PRUNING_CACHE": str(place / "cache"),
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_an_installed_package_prunes_from_any_directory(place):
    packaged = place / "site" / "pruning" / "conf"
    for path in (ROOT / "conf").rglob("*.*"):
        assert (packaged / path.relative_to(ROOT / "conf")).read_text() == path.read_text()

    (place / "script.py").write_text(SCRIPT)
    assert "from_python/model" in run(place, "script.py", place / "site")

    entry = place / "site" / "bin" / "pruning-launch"
    said = run(place, entry, "--help")
    assert "method: dense, depth" in said
    assert "schema" not in said
    text = place / "words.txt"
    text.write_text(" ".join(f"w{index * index % 97}" for index in range(3000)))
    run(
        place,
        entry,
        *("model=local", "model.name=toy", "model.path=dense", "speedup=1.2", "hardware=params"),
        *("hardware.sequence_length=16", "calibration=text", f"calibration.text.path={text}"),
        *("calibration.tokens=1024", "calibration.sequence_length=32", "search.sequence_length=32"),
        *("search.tokens=64", "suite=none", "tracker=none"),
    )
    assert len(list((place / "outputs" / "default").glob("toy-ziplm-*/result.json"))) == 1
