"""Standard streams that no job fails by: closed, read by nobody, or of a small character set."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class Output:
    """A stream that takes all that is printed; what cannot be written goes nowhere."""

    def __init__(self, stream: Any):  # of the system, a notebook or a test
        self.stream, self.failure = stream, ""

    def write(self, text: str) -> int:
        """Write a text if that can be."""
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is kept back, if that can be."""
        self._attempt(self.stream.flush)

    def _attempt(self, call: Callable[[], object]) -> None:
        """Call; after an error all goes to the null device, at the end of the process too."""
        try:
            call()
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # as of `| head`, which has read enough
                self.failure = f"standard output: {error.strerror}: write it to another place"
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        """Be like the stream otherwise."""
        if name == "stream":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.stream, name)


@contextmanager
def steady_streams() -> Generator[Callable[[], str], None, None]:
    """Print to what is there; give a function that says what was wrong with it, or nothing.

    Where a stream is closed the null device is opened in its place, or a file would get its number.
    Characters that the output does not have become question marks.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the first number that is free
    given: tuple[Any, Any] = (sys.stdout, sys.stderr)
    if hasattr(given[0], "reconfigure"):
        given[0].reconfigure(errors="replace")
    steady = [stream and Output(stream) for stream in given]

    def fault() -> str:
        outputs = [output for output in steady if output]
        for output in outputs:
            output.flush()
        return next((output.failure for output in outputs if output.failure), "")

    sys.stdout, sys.stderr = (cast(TextIO, output) for output in steady)
    try:
        yield fault
    finally:
        fault()
        sys.stdout, sys.stderr = given
