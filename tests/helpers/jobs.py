"""Run launch.py many times without importing torch as often.

A server imports everything once. For each job it forks a process, which redirects its output and
runs launch.py as `__main__` with arguments of its own, and may be told to kill itself (SIGKILL, as
`kill -9` does) at the n-th call of some function, or after some time.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).parents[2]


class Jobs:
    """The server, as seen from a test."""

    def __init__(self, environment: dict[str, str]):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.jobs"],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, *arguments: str, kill_at: str = "", call: int = 1, kill_after: float = 0.0
    ) -> CompletedProcess[str]:
        """Run launch.py; `kill_at` is "module:function" or "module:class.function".

        `kill_after` are seconds; 0 is never.
        """
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        order = {"arguments": arguments, "kill_at": kill_at, "call": call, "after": kill_after}
        print(json.dumps(order), file=self.server.stdin, flush=True)
        code, out, err = json.loads(self.server.stdout.readline())
        return CompletedProcess(["launch.py", *arguments], code, out, err)

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


def _deadly(path: str, call: int) -> None:
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
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    if order["kill_at"]:
        _deadly(order["kill_at"], order["call"])
    if order["after"]:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, order["after"])
    sys.argv = ["launch.py", *order["arguments"]]
    runpy.run_path("launch.py", run_name="__main__")


def _serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
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
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            out.seek(0)
            err.seek(0)
            print(json.dumps([status, out.read(), err.read()]), flush=True)


if __name__ == "__main__":
    for part in ("pruning.job.run", "pruning.solver.ordering", "pruning.search.climb"):
        import_module(part)
    import_module("transformers").LlamaForCausalLM  # noqa: B018  (imported at first use)
    _serve()
