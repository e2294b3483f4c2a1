"""Show what the cache holds, or remove what was not used lately and what killed jobs left.

`checkpoints` are those of trainings that were killed: the same command goes on from them, so they
stay until they were not used lately.

python -m pruning.cache
python -m pruning.cache prune --days 30 [--stage moments] [--dry-run]
"""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pruning.results.cache import Cache

ROOT = os.environ.get("PRUNING_CACHE", "~/.cache/pruning")
MIB = 2**20


def show(cache: Cache) -> None:
    """Print entries and size of every stage."""
    table = Table("stage", "entries", "MiB", "last used, days ago", title=str(cache.root))
    entries = cache.entries()
    for stage in dict.fromkeys(entry.stage for entry in entries):
        mine = [entry for entry in entries if entry.stage == stage]
        size, age = sum(entry.size for entry in mine), min(entry.days for entry in mine)
        table.add_row(stage, str(len(mine)), f"{size / MIB:.1f}", f"{age:.1f}")
    size = sum(entry.size for entry in entries)
    table.add_row("all", str(len(entries)), f"{size / MIB:.1f}", "")
    Console().print(table)


def prune(cache: Cache, days: float, stage: str | None, dry_run: bool) -> None:
    """Remove what is of no use, or was not used for so many days, of a stage or of all."""
    entries = cache.entries()
    old = [e for e in entries if (e.days >= days or not e.useful) and stage in (None, e.stage)]
    removed = [e for e in old if cache.remove(e, dry_run)]
    size = sum(entry.size for entry in removed) / MIB
    would = "would remove" if dry_run else "removed"
    print(f"{would} {len(removed)} of {len(entries)} entries, {size:.1f} MiB")
    if len(removed) < len(old):
        print(f"{len(old) - len(removed)} are being built or checked by a job, and stay")


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m pruning.cache", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(ROOT), help="default: %(default)s")
    parser.add_argument("command", nargs="?", choices=["show", "prune"], default="show")
    parser.add_argument("--days", type=float, default=30, help="unused for so long; default 30")
    parser.add_argument("--stage", help="only this one")
    parser.add_argument("--dry-run", action="store_true", help="say what would go")
    given = parser.parse_args(arguments)
    cache = Cache(given.root)
    if given.command == "show":
        show(cache)
    else:
        prune(cache, given.days, given.stage, given.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
