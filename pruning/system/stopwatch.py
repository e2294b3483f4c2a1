"""How long each stage of a job took."""

import time
from collections.abc import Generator
from contextlib import contextmanager


class Stopwatch:
    """Seconds per named stage; a stage that is entered again adds up."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Generator[None, None, None]:
        """Count what happens inside to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def total(self) -> dict[str, float]:
        """Return the seconds of all stages and, as `total`, since the start."""
        seconds = {**self.seconds, "total": time.perf_counter() - self.start}
        return {stage: round(value, 3) for stage, value in seconds.items()}
