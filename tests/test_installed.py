"""What `pip install .` leaves: conf/ and published tables, the Python way in, pruning-launch."""

import shutil
import subprocess
import venv
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
    """Install a copy of the checkout into a fresh environment, and leave the checkout."""
    where = tmp_path_factory.mktemp("installed")
    names = ".*", "outputs", "multirun", "build", "*.egg-info", "images"
    left_out = shutil.ignore_patterns(*names)
    shutil.copytree(ROOT, where / "source", ignore=left_out)
    shutil.copy(ROOT / "examples" / "prune_from_python.py", where / "examples_of_the_wheel.py")
    venv.create(where / "env", with_pip=True)
    pip = [where / "env" / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    words = ["install", "--constraint", ROOT / "constraints.txt", where / "source"]
    subprocess.run([*pip, *words], check=True, capture_output=True, text=True)
    return where


def run(place: Path, *words: object) -> str:
    """Run the Python of that environment, from another directory; return its output."""
    done = subprocess.run(
        [place / "env" / "bin" / "python", *words],
        cwd=place,
        env={
            "PYTHONPATH": str(place),  # for the example
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
    (site,) = (place / "env" / "lib").glob("python3*/site-packages")
    packaged = site / "pruning" / "conf"
    for path in (ROOT / "conf").rglob("*.*"):
        assert (packaged / path.relative_to(ROOT / "conf")).read_text() == path.read_text()

    published = site / "pruning" / "reproduction" / "published"
    for path in (ROOT / "docs" / "reproduction").glob("*.yaml"):
        assert (published / path.name).read_text() == path.read_text()
    said = run(place, "-m", "pruning", "reproduce", "slimgpt-llama7b")
    assert "    pruning-launch experiment=slimgpt_llama7b method.ratio=0.5 recovery=lora" in said

    (place / "script.py").write_text(SCRIPT)
    assert "from_python/model" in run(place, "script.py", site)

    entry = place / "env" / "bin" / "pruning-launch"
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
        *(
            "calibration.tokens=1024",
            "calibration.sequence_length=32",
            "search.sequence_length=[32]",
        ),
        *("search.tokens=64", "suite=none", "tracker=none"),
    )
    assert len(list((place / "outputs" / "default").glob("toy-ziplm-*/result.json"))) == 1
