"""Progress bars for everything that takes longer than a few seconds."""

from collections.abc import Generator, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pruning.system.device_locks import rest

T = TypeVar("T")

console = Console(stderr=True)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` under a bar that says how many are done and how long it took.

    Between two items other jobs may time something on the device.
    """
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=expected(items, total))
        for done, item in enumerate(items, 1):
            yield item
            rest()
            more = max(done, progress.tasks[0].total or 0)  # what is timed may take more rounds
            progress.update(task, completed=done, total=more)


@contextmanager
def without_bars() -> Generator[None]:
    """Let transformers show no bar of its own, as for files of this machine, which take seconds."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def expected(items: Iterable[object], total: int | None) -> int | None:
    """Return how many items there will be; None where nobody knows."""
    return total if total is not None else len(items) if isinstance(items, Sized) else None
