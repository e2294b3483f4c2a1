"""Jobs of every kind that are killed, or whose disk is filled, and what must be true afterwards."""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from pruning.system.cache import file_sha256
from tests.helpers.encoders import encoder_arguments
from tests.helpers.jobs import Jobs
from tests.helpers.place import Place

NO_CLOCK = (  # so that results are the same each time
    *("hardware=params", "hardware.device=cpu", "hardware.alignment=128"),
    "hardware.sequence_length=128",
)
TRAINED = (
    *("recovery.text.path={text}", "recovery.max_length=32", "recovery.batch_size=4"),
    *("recovery.steps=8", "recovery.save_steps=2", "recovery.learning_rate=0.001"),
)
FLOP = (
    *("method=flop", "method.modules=mlp.*", "method.steps=12", "method.batch_size=4"),
    *("method.save_steps=4", "speedup=1.1", "hardware.alignment=16"),
)
PATH = ("recovery=gradual", "recovery.path=[1.2]", "speedup=1.4", "search.steps=0")
KINDS: dict[str, tuple[str, ...]] = {
    "one-shot": ("speedup=1.3",),
    "slimgpt": ("method=slimgpt", "speedup=1.3"),
    "flop": FLOP,
    "gradual": (*PATH, *TRAINED),
    "encoder": ("speedup=1.2", "task.epochs=0.5", "task.save_steps=2"),
    "sweep": ("speedup=1.2,1.4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "export": ("--to", "onnx,openvino"),
}
TIMES = ("seconds", "tokens_per_s", "peak_host_gib", "peak_device_gib")
EXPORTS = ("onnxruntime/*", "openvino/*")


class Reference:
    """What an undisturbed job of a kind leaves, and how long it takes."""

    def __init__(self, kind: str, place: Place, jobs: Jobs):
        self.kind, self.place, self.root = kind, place, place.root / "reference" / kind
        if kind == "export":  # of a finished job
            done = jobs(*self.arguments(self.root, "one-shot"))
            assert done.returncode == 0, done.stderr[-3000:]
        start = time.perf_counter()
        done = jobs(*self.arguments(self.root), program=self.program)
        self.seconds = time.perf_counter() - start
        assert done.returncode == 0, done.stderr[-3000:]
        self.content = content(self.root)

    @property
    def program(self) -> str:
        """Return what runs it."""
        return "pruning" if self.kind == "export" else "launch.py"

    def arguments(self, root: Path, kind: str = "") -> list[str]:
        """Return the command line of such a job below `root`."""
        given = [
            each.replace("{text}", str(self.place.root / "text.txt"))
            for each in KINDS[kind or self.kind]
        ]
        outputs = str((root / "outputs").relative_to(self.place.root))
        match kind or self.kind:
            case "export":
                (model,) = (root / "outputs").glob("*/model")
                return ["export", str(model), *given]
            case "encoder":
                words = encoder_arguments(self.place, "task", *NO_CLOCK, *given, outputs=outputs)
            case _:
                words = self.place.arguments(*NO_CLOCK, *given, outputs=outputs)
        multirun = ["-m"] if (kind or self.kind) == "sweep" else []
        return [*multirun, *words, f"cache={root / 'cache'}"]


class Undertaking:
    """One job, disturbed some times and then left alone."""

    def __init__(self, reference: Reference, jobs: Jobs, name: str):
        self.reference, self.jobs = reference, jobs
        self.root = reference.place.root / name
        self.kills, self.faults = 0, list[tuple[int, str]]()
        if reference.kind == "export":
            shutil.copytree(reference.root / "outputs", self.root / "outputs")
            for path in exported(self.root):
                path.unlink()
        self.arguments = reference.arguments(self.root)
        self.written: dict[Path, int] = {}

    def disturb(self, how: str, moment: float) -> bool:
        """Start the job and disturb it after so many seconds; say whether it was not done yet."""
        filler, start = self.reference.place.root / "filler", time.perf_counter()
        by = str(filler) if how == "disk full" else how
        done = self._run(kill_after=moment, by=by)
        if done.returncode == 0:
            if not self.kills:  # the machine is faster or slower now
                self.reference.seconds = time.perf_counter() - start
            return False
        self.kills += 1
        if how != "disk full":
            wanted = {"SIGKILL": -9, "SIGTERM": -15}[how]
            if done.returncode != wanted:
                self._fault(f"after {how} it ended with {done.returncode}: {done.stderr[-500:]}")
        else:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
            if done.returncode != 1 or not lines or "Traceback" in done.stderr:
                self._fault(f"on a full disk it said {done.stderr[-1500:]!r}")
        self._check()
        return True

    def finish(self) -> None:
        """Let the job end; compare what it leaves."""
        done = self._run()
        if done.returncode:
            self._fault(f"left alone it ended with {done.returncode}: {done.stderr[-1500:]}")
            return
        self._check()
        made, wanted = content(self.root), self.reference.content
        for name in sorted(made.keys() | wanted.keys()):
            if made.get(name) != wanted.get(name):
                where = differing(made.get(name), wanted.get(name))
                self._fault(f"{name} is not what an undisturbed job leaves{where}")
        left = [*self.root.rglob(".*.partial"), *self.root.rglob(".*.former")]
        left += [
            *(self.root / "cache").glob("*/.*-*"),
            *(self.root / "cache" / "checkpoints").glob("*"),
        ]
        left += [path for path in (self.root / "outputs").rglob(".*-*") if path.is_file()]
        if left:
            self._fault(f"it left {[str(path.relative_to(self.root)) for path in left]}")

    def remove(self) -> None:
        """Make room."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _run(self, **how: Any) -> CompletedProcess[str]:
        return self.jobs(*self.arguments, program=self.reference.program, **how)

    def _fault(self, said: str) -> None:
        self.faults.append((self.kills, said))

    def _check(self) -> None:
        """Look for what was finished and is gone or anew, and for halves."""
        now = finished(self.root)
        for path in sorted(self.written.keys() - now.keys()):
            self._fault(f"{path} was finished, and is gone")
        for path, when in self.written.items():
            if now.get(path, when) != when:
                self._fault(f"{path} was finished, and is written again")
        self.written = now
        wanted = self.reference.content
        for name, value in content(self.root).items():
            if value != wanted.get(name):
                where = differing(value, wanted.get(name))
                self._fault(f"{name} is there, and is not what it should be{where}")
        logs = [path.read_text(errors="replace") for path in self.root.rglob("job.log")]
        computed = Counter(
            entry
            for log in logs
            for entry in re.findall(r"computed in [\d.]+ s, \S+/(\w+/\w+)", log)
        )
        for entry, times in computed.items():
            if times > 1:
                self._fault(f"{entry} was computed {times} times")
        for log in logs:
            for line in log.splitlines():
                if "is damaged" in line or "is not a result" in line:
                    self._fault(line)


def finished(root: Path) -> dict[Path, int]:
    """Return what is finished below a directory, and when that was."""
    paths = [*root.glob("cache/*/*/manifest.json"), *root.glob("outputs/*/result.json")]
    return {path.relative_to(root): path.stat().st_mtime_ns for path in paths}


def exported(root: Path) -> Iterator[Path]:
    """Yield the files that engines serve."""
    for pattern in EXPORTS:
        yield from (path for path in root.glob(f"outputs/*/{pattern}") if path.is_file())


def content(root: Path) -> dict[str, Any]:
    """Return what finished jobs and exports leave, by name, without times and places."""
    kept: dict[str, Any] = {}
    for path in root.glob("outputs/*/result.json"):
        out, name = path.parent, path.parent.name
        result = json.loads(path.read_text())
        for key in ("seconds", "memory", "environment", "command"):
            del result[key]
        del result["config"]["cache"]
        kept[f"{name}/result.json"] = timeless(result)
        kept[f"{name}/allocation.json"] = json.loads((out / "allocation.json").read_text())
        for file in sorted((out / "model").iterdir()):
            if file.name != "README.md":  # which says where it is
                kept[f"{name}/model/{file.name}"] = file_sha256(file)
    for path in exported(root):
        kept[f"{path.relative_to(root / 'outputs')}"] = file_sha256(path)
    return kept


def timeless(value: Any) -> Any:
    """Leave out what a clock or a memory said."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def differing(made: Any, wanted: Any, path: str = "") -> str:
    """Say where two values differ first."""
    if isinstance(made, dict) and isinstance(wanted, dict):
        for key in sorted(made.keys() | wanted.keys()):
            if made.get(key) != wanted.get(key):
                return differing(made.get(key), wanted.get(key), f"{path}.{key}")
    if isinstance(made, list) and isinstance(wanted, list) and len(made) == len(wanted):
        for index, (one, other) in enumerate(zip(made, wanted, strict=True)):
            if one != other:
                return differing(one, other, f"{path}[{index}]")
    return f": {path} {str(made)[:80]} and {str(wanted)[:80]}"
