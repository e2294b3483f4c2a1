"""Extras of this package that somebody needs and has not installed."""

import shlex
import sys


def pip_install(extra: str) -> str:
    """Return the command that adds an extra to the environment of this process."""
    python = shlex.quote(sys.executable)
    return f"{python} -m pip install 'inference-aware-pruning[{extra}]'"
