"""Run launch.py many times without importing torch as often.

A server imports everything once. For each job it forks a process, which redirects its output and
runs launch.py, or `python -m pruning`, as `__main__` with arguments of its own. A job may kill
itself (SIGKILL, as `kill -9` does) at the n-th call of some function. After some time the server
may send a signal to it and all its processes, or fill its disk until it ends.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

ROOT = Path(__file__).parents[2]


class Jobs:
    """The server, as seen from a test."""

    def __init__(self, environment: dict[str, str]):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.jobs", tempfile.gettempdir()],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, **order: Any) -> CompletedProcess[str]:
        """Run launch.py with these arguments; an order may have these too.

        `program`: "launch.py", or a module such as "pruning". `environment`: variables, None for
        one to remove. `kill_at`: "module:function" or "module:class.function", whose `call`-th call
        is the last thing that the job does. `kill_after`: seconds until `by`, a signal's name, is
        sent; or, where that is a path, until it is written there until the disk is full.
        """
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps({"arguments": arguments, **order}), file=self.server.stdin, flush=True)
        code, out, err = json.loads(self.server.stdout.readline())
        return CompletedProcess([order.get("program", "launch.py"), *arguments], code, out, err)

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


def deadly_at(path: str, call: int) -> None:
    """Make the `call`-th call of a function the last thing that this process does."""
    module, _, names = path.partition(":")
    *parents, name = names.split(".")
    owner = import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    function = getattr(owner, name)
    left = [call]

    def deadly(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, deadly)


def _child(order: dict, out: int, err: int) -> None:
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for name, value in order.get("environment", {}).items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    tempfile.tempdir = None  # TMPDIR may be another
    if "kill_at" in order:
        deadly_at(order["kill_at"], order.get("call", 1))
    program = order.get("program", "launch.py")
    sys.argv = [program, *order["arguments"]]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _wait(pid: int, order: dict) -> int:
    """Wait for a job, and disturb it when it is time; return how it ended."""
    if "kill_after" in order:
        end = time.monotonic() + order["kill_after"]
        while time.monotonic() < end:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        how = order.get("by", "SIGKILL")
        if how.startswith("SIG"):
            with suppress(ProcessLookupError):  # it is not a group of its own yet
                os.killpg(pid, signal.Signals[how])
            os.kill(pid, signal.Signals[how])
        else:
            return _without_space(pid, Path(how))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _without_space(pid: int, filler: Path) -> int:
    """Keep the disk full until the job ends."""
    ended, status = 0, 0
    with filler.open("wb", buffering=0) as file:
        while not ended:
            with suppress(OSError):  # there is no space left
                while file.write(bytes(2**16)):
                    pass
            ended, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)
    filler.unlink()
    return os.waitstatus_to_exitcode(status)


def _serve(directory: str) -> None:
    """Run jobs; their output is in `directory`, for the disk of the jobs may be full."""
    for line in sys.stdin:
        order = json.loads(line)
        kept: dict[str, Any] = {"mode": "w+", "dir": directory}
        with tempfile.TemporaryFile(**kept) as out, tempfile.TemporaryFile(**kept) as err:
            pid = os.fork()
            if pid == 0:
                try:
                    _child(order, out.fileno(), err.fileno())
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else int(end.code is not None)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    code = 1
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            status = _wait(pid, order)
            with suppress(ProcessLookupError):  # workers of a sweep outlive a job that exits so
                os.killpg(pid, signal.SIGKILL)
            out.seek(0)
            err.seek(0)
            print(json.dumps([status, out.read(), err.read()]), flush=True)


if __name__ == "__main__":
    for part in ("pruning.job.run", "pruning.solver.ordering", "pruning.search.climb"):
        import_module(part)
    import_module("transformers").LlamaForCausalLM  # noqa: B018  (imported at first use)
    _serve(sys.argv[1])
