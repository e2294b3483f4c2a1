"""What engines make of a graph, and the silence they make it in."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Arrays = dict[str, "np.ndarray"]


class Session:
    """A graph that an engine has compiled: inputs by name -> outputs, in order."""

    def __init__(self, run: Callable[[Arrays], list[Any]], inputs: list[str], outputs: list[str]):
        self.run, self.inputs, self.outputs = run, inputs, outputs

    def __call__(self, arrays: Arrays) -> list[Any]:
        """Run it; a graph has no input that nothing depends on."""
        return self.run({name: arrays[name] for name in self.inputs})


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the warnings of exporters to those who write them: no user can act on them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)
