"""Does every bad input end in one line that says what to do? One JSON line.

    python benchmarks/bad_inputs.py [--only WORDS] [--tests]

benchmarks/bad_inputs.yaml lists them. Jobs run on tiny random models; nothing is downloaded. Disks
that are full or read-only are a tmpfs, which only root can mount: else these are left out.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

import yaml

from tests.helpers.damaged import write_damaged
from tests.helpers.encoders import encoder_arguments
from tests.helpers.jobs import ROOT, Jobs
from tests.helpers.place import Place
from tests.helpers.tmpfs import mountable, tmpfs

OUT = "bad"  # where jobs that must fail would leave their results
MEMORY = ("{full}", "{readonly}")


@dataclass
class Case:
    """A bad input, and how it has to end."""

    name: str
    kind: str  # what it is given to
    give: list[str] | str  # overrides, or a command line of the shell
    says: list[str] = field(default_factory=list)  # what the last line holds
    ends: int = 1  # exit code; 0: all goes well
    test: bool = False  # it is part of the tests

    @property
    def mounts(self) -> bool:
        """Say whether it needs a disk of its own."""
        return any(name in str(self.give) for name in MEMORY)


def cases() -> list[Case]:
    """Read the list."""
    groups = yaml.safe_load((ROOT / "benchmarks" / "bad_inputs.yaml").read_text())
    return [
        Case(name, kind, **case | {"says": [*map(str, case.get("says", []))]})
        for kind, group in groups.items()
        for name, case in group.items()
    ]


class Trial:
    """Runs cases in a directory with tiny models and damaged files."""

    def __init__(self, root: Path):
        self.place = Place(root)
        self.place.environment |= {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(root / "damaged" / "wheels"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "WANDB_MODE": "offline",
        }
        self.damaged = write_damaged(self.place)
        self.jobs = Jobs(self.place.environment)
        self.disks = {name: str(root / name.strip("{}")) for name in MEMORY}
        done = self.jobs(*self.place.arguments())  # so that stages are there
        assert done.returncode == 0, done.stderr

    def faults(self, case: Case) -> list[str]:
        """Run a case; say what is not as it has to be."""
        before = self._inputs()
        done = self._run(case)
        lines = done.stderr.rstrip().splitlines()
        last = lines[-1] if lines else ""
        said = [line for line in lines if line.startswith("error:")]
        wrong = []
        if done.returncode != case.ends:
            wrong.append(f"it ended with {done.returncode}")
        if any(word in done.stdout + done.stderr for word in ("Traceback", "Exception ignored")):
            wrong.append("it printed a traceback")
        if case.ends in (1, 130) and said != [last]:  # else it is how commands are called
            wrong.append(f"{len(said)} lines of errors, and the last line is {last[:300]!r}")
        missing = [part for part in case.says if self._filled(part) not in last]
        if missing:
            wrong.append(f"{missing} are not in {last[:600]!r}")
        if left := [*self._left(case), *sorted(self._inputs() ^ before)]:
            wrong.append(f"it left {left}")
        shutil.rmtree(self.place.root / OUT, ignore_errors=True)
        return wrong

    def _run(self, case: Case) -> CompletedProcess[str]:
        place = self.place
        if isinstance(case.give, str):
            with self._mounted(case):
                return subprocess.run(
                    ["bash", "-c", self._filled(case.give)],
                    cwd=ROOT,
                    env=place.environment | {"PYTHONPATH": str(ROOT)},
                    capture_output=True,
                    text=True,
                    timeout=600,
                )
        given = [self._filled(word) for word in case.give]
        if case.kind == "command":
            return self.jobs(*given, program="pruning")
        if case.kind == "decoder":
            return self.jobs(*place.arguments(*given, outputs=OUT))
        return self.jobs(*encoder_arguments(place, case.kind, *given, outputs=OUT))

    def _filled(self, text: str) -> str:
        """Put paths and commands where a case names them."""
        job = shlex.join(self.place.arguments(outputs=OUT))
        names = {
            "{python}": sys.executable,
            "{job}": job,
            "{code}": str(ROOT),
            "{root}": str(self.place.root),
            "{damaged}": str(self.damaged),
            "{out}": str(self.place.root / OUT),
            "{long}": "/" + "x" * 300,
            **self.disks,
        }
        for name, value in names.items():
            text = text.replace(name, value)
        return text

    def _left(self, case: Case) -> Iterator[str]:
        """Yield what a job left that is not whole, or should not be there."""
        out, cache = self.place.root / OUT, self.place.cache
        for path in cache.glob("*/.*-*"):
            yield str(path)
        for path in [*out.glob("**/.*.partial"), *out.glob("**/.*.former")]:
            yield str(path)
        if case.ends:
            for name in ("result.json", "model"):
                yield from map(str, out.glob(f"*/{name}"))

    def _inputs(self) -> set[tuple[str, int]]:
        """Return the inputs, and when they were written."""
        models = (self.place.root / name for name in ("dense", "bert", "headless", "damaged"))
        files = (path for model in models for path in model.rglob("*") if path.is_file())
        return {(str(path), path.stat().st_mtime_ns) for path in files}

    @contextmanager
    def _mounted(self, case: Case) -> Iterator[None]:
        """Mount the disks that a case needs: one of 8 MiB, and one that is read-only."""
        with ExitStack() as stack:
            for name, option in zip(MEMORY, ("size=8m", "ro"), strict=True):
                if name in str(case.give):
                    stack.enter_context(tmpfs(Path(self.disks[name]), option))
            yield


def main() -> None:
    """Print a line per case that did not end as it has to on stderr, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name or kind holds this")
    parser.add_argument("--tests", action="store_true", help="only the part that tests have too")
    given = parser.parse_args()
    chosen = [case for case in cases() if given.only in case.name or given.only == case.kind]
    chosen = [case for case in chosen if case.test or not given.tests]
    able = mountable()
    ready = [case for case in chosen if able or not case.mounts]
    failed: dict[str, list[str]] = {}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        trial = Trial(Path(scratch))
        for case in ready:
            if wrong := trial.faults(case):
                failed[case.name] = wrong
                print(f"{case.kind}: {case.name}: {'; '.join(wrong)}", file=sys.stderr, flush=True)
        trial.jobs.close()
    line = {
        "benchmark": "bad_inputs",
        "inputs": len(ready),
        "one_line": len(ready) - len(failed),
        "failed": [*failed],
        "left_out": [case.name for case in chosen if case not in ready],
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
