"""Content-addressed cache of stages: what was computed once is found again, checked, or rebuilt."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.system.device_locks import free, locked
from pruning.system.files import expanded, to_json, write_text
from pruning.system.writing import writing

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"  # where trainings that are not finished keep what they go on from
NAME = re.compile(r"[0-9a-f]{16}")
UNFINISHED = re.compile(rf"\.({NAME.pattern})-.+")  # names of directories that become entries


def root() -> str:
    """Return where stages are cached unless a job says otherwise."""
    return os.environ.get("PRUNING_CACHE", "~/.cache/pruning")


def digest(key: Any) -> str:
    """Hash a JSON-able `key` to 16 hexadecimal digits, whatever the order of its dictionaries."""
    text = json.dumps(key, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Hash the content of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tensors(named: "Iterable[tuple[str, Tensor]]") -> str:
    """Hash named tensors to 16 hexadecimal digits: names, dtypes, shapes and every bit, in order.

    In front of the bytes of each is what tells how many they are, so no two lists are alike.
    """
    import torch

    state = hashlib.sha256()
    for name, tensor in named:
        state.update(json.dumps([name, str(tensor.dtype), [*tensor.shape]]).encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()[:16]


@dataclass
class Entry:
    """A finished stage, or what a job has of one, or had when it was killed."""

    path: Path
    stage: str
    size: int  # bytes
    days: float  # since a job used it
    useful: bool  # finished, or what the training of a killed job goes on from


class Cache:
    """A directory of finished stages, `root/<stage>/<digest of key>/`, each with a manifest.

    An entry appears by one rename, when everything in it is written, so a killed process leaves
    none half done. At each use, sizes and times of change are compared with the manifest; a file
    whose time is another is read and its sha256 compared, once: then the manifest has the new time.
    With `verify`, every file is read at each use. What does not match is removed and built again.
    """

    def __init__(self, root: str | Path, verify: bool = False):
        self.root = expanded(root, "cache")
        self.verify = verify
        self.said: set[Path] = set()  # entries that the log has named

    def stage(self, name: str, key: Any, build: Callable[[Path], None], size: int = 0) -> Path:
        """Return the directory of stage `name` for `key`, calling `build(directory)` if needed.

        ValueError where it is to be built, and fewer bytes are free than its `size`.
        """
        entry = self.root / name / digest(key)
        with writing(self.root, "cache"), locked(entry.with_suffix(".lock")):
            if entry.exists():
                if fault := self._fault(entry):
                    log.warning("cache entry %s is damaged (%s): rebuilding it", entry, fault)
                    shutil.rmtree(entry)
                else:
                    if entry not in self.said:
                        log.info("%s: found in cache, %s", name, entry)
                    self.said.add(entry)
                    os.utime(entry)  # it is in use
                    return entry
            for leftover in entry.parent.glob(f".{entry.name}-*"):
                shutil.rmtree(leftover)
            self._check_room(name, size)
            scratch = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
            start = time.perf_counter()
            try:
                build(scratch)
                self._seal(scratch, name, key)
                os.replace(scratch, entry)
                log.info("%s: computed in %.1f s, %s", name, time.perf_counter() - start, entry)
                self.said.add(entry)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return entry

    def in_files(self, key: Any, fill: Callable[[Path], None]) -> Callable[[Path], None]:
        """Return what builds the stage of `key` from safetensors that outlast a killed job.

        `fill(directory)` writes those that are not there yet.
        """

        def build(directory: Path) -> None:
            kept = self.checkpoints(key)
            kept.mkdir(parents=True, exist_ok=True)
            fill(kept)
            for file in kept.glob("*.safetensors"):
                os.replace(file, directory / file.name)
            shutil.rmtree(kept)

        return build

    def has(self, name: str, key: Any) -> bool:
        """Say whether stage `name` is finished for `key`."""
        return (self.root / name / digest(key)).exists()

    def checkpoints(self, key: Any) -> Path:
        """Return where the training that builds the stage of `key` keeps its checkpoints."""
        return self.root / CHECKPOINTS / digest(key)

    def entries(self) -> list[Entry]:
        """List all stages, finished or not, and the checkpoints of trainings."""
        entries: list[Entry] = []
        for path in sorted(self.root.glob("*/*")):
            unfinished = UNFINISHED.fullmatch(path.name) is not None
            resumable = path.parent.name == CHECKPOINTS and NAME.fullmatch(path.name) is not None
            begun = (unfinished or resumable) and path.is_dir()
            if not begun and not (path / MANIFEST).is_file():
                continue
            try:
                files = [p.stat() for p in path.rglob("*") if p.is_file()]
                used = path.stat().st_mtime
            except FileNotFoundError:  # its job has just finished it
                continue
            if resumable:  # no job marks it as used
                used = max([used, *(file.st_mtime for file in files)])
            size, age = sum(file.st_size for file in files), (time.time() - used) / 86400
            entries.append(Entry(path, path.parent.name, size, age, not unfinished))
        return entries

    def remove(self, entry: Entry, dry_run: bool = False) -> bool:
        """Remove a stage, unless a job is at it now; say whether it went, or would go."""
        unfinished = UNFINISHED.fullmatch(entry.path.name)
        lock = f"{unfinished[1] if unfinished else entry.path.name}.lock"
        locks = [entry.path.with_name(lock)]
        if entry.stage == CHECKPOINTS:  # of whatever stage is trained
            locks = [*self.root.glob(f"*/{lock}"), *entry.path.glob("*.lock")]
        with ExitStack() as stack:
            held = [stack.enter_context(free(path)) for path in locks]
            going = all(held) and entry.path.exists()
            if going and not dry_run:
                shutil.rmtree(entry.path)
        return going

    def _check_room(self, name: str, size: int) -> None:
        free = shutil.disk_usage(self.root).free
        if size > free:
            raise ValueError(
                f"cache={self.root}: {name} will take {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB "
                "are free there: remove what no job needs (python -m pruning cache), or give "
                "another cache"
            )

    @staticmethod
    def _seal(directory: Path, name: str, key: Any) -> None:
        files = {
            str(path.relative_to(directory)): {
                "size": path.stat().st_size,
                "mtime_ns": path.stat().st_mtime_ns,
                "sha256": file_sha256(path),
            }
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        manifest = {"stage": name, "key": key, "files": files}
        (directory / MANIFEST).write_text(to_json(manifest, indent=1, default=str))

    def _fault(self, entry: Path) -> str | None:
        """Say what is wrong with an entry, or None."""
        try:
            manifest = json.loads((entry / MANIFEST).read_text())
            files: dict[str, dict[str, Any]] = manifest["files"]
            sums = {name: (file["size"], file["sha256"]) for name, file in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"manifest: {error}"
        changed = False
        for name, (size, sha256) in sums.items():
            path = entry / name
            if not path.is_file():
                return f"{name} is missing"
            now = path.stat()
            if now.st_size != size:
                return f"{name} has {now.st_size} bytes, not {size}"
            same_time = files[name].get("mtime_ns") == now.st_mtime_ns  # older entries have none
            if same_time and not self.verify:
                continue
            try:
                altered = file_sha256(path) != sha256
            except OSError as error:
                return f"{name}: {error.strerror}"
            if altered:
                return f"{name} was altered"
            files[name]["mtime_ns"] = now.st_mtime_ns
            changed |= not same_time
        if changed:
            write_text(to_json(manifest, indent=1), entry / MANIFEST)
        return None
