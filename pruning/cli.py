"""The command line beside launch.py: `python -m pruning COMMAND ...`.

report OUTPUTS/STUDY                      tables, plots and one page of a study's results
profile [FIELD=VALUE ...]                 measure a latency table and save it; no weights are needed
profile show TABLE                        print a table, and draw it
cache [prune --days 30 --stage NAME]      what the cache holds, or clear what was not used lately
sync OUTPUTS/STUDY [tracker.FIELD=VALUE]  upload finished results to W&B, from their files alone
dashboard OUTPUTS/STUDY [entity=me]       a W&B workspace and report of a study
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from pruning.composition import compose
from pruning.results.points import results_of
from pruning.results.tracker import Service
from pruning.system.cache import Cache, root
from pruning.system.writing import explained, of_files

MIB = 2**20
NOTHING = "error: {} holds no result.json of a finished job; run some first"


def report(arguments: list[str]) -> int:
    """Write the report of a study and print its table."""
    from pruning.results import frontier

    if len(arguments) != 1:
        print("usage: python -m pruning report outputs/<study>", file=sys.stderr)
        return 2
    written = frontier.write(Path(arguments[0]).resolve(), html=True)
    if written is None:
        print(NOTHING.format(arguments[0]), file=sys.stderr)
        return 1
    print(written.read_text())
    return 0


def profile(arguments: list[str]) -> int:
    """Measure a latency table and save it, to prune for this machine on any other; or show one.

    Prune with `hardware=file hardware.path=TABLE`.
    """
    from pruning.job.profile import measure, show

    try:
        if arguments[:1] == ["show"] and len(arguments) == 2:
            show(Path(arguments[1]))
        elif not arguments or all("=" in argument for argument in arguments):
            path = measure(arguments)
            show(path)
            print(path)
        else:
            print(__doc__)
            return 0 if arguments[0] in ("-h", "--help") else 2
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except OSError as error:
        if not of_files(error):
            raise
        print("error:", explained(error), file=sys.stderr)
        return 1
    return 0


def cache(arguments: list[str]) -> int:
    """Show what the cache holds, or remove what was not used lately and what killed jobs left.

    `checkpoints` are those of trainings that were killed: the same command goes on from them, so
    they stay until they were not used lately.
    """
    parser = argparse.ArgumentParser(prog="python -m pruning cache", description=cache.__doc__)
    parser.add_argument("--root", type=Path, default=Path(root()), help="default: %(default)s")
    parser.add_argument("command", nargs="?", choices=["show", "prune"], default="show")
    parser.add_argument("--days", type=float, default=30, help="unused for so long; default 30")
    parser.add_argument("--stage", help="only this one")
    parser.add_argument("--dry-run", action="store_true", help="say what would go")
    given = parser.parse_args(arguments)
    stages = Cache(given.root)
    if given.command == "show":
        _show_cache(stages)
    else:
        _prune_cache(stages, given.days, given.stage, given.dry_run)
    return 0


def _show_cache(stages: Cache) -> None:
    """Print entries and size of every stage."""
    table = Table("stage", "entries", "MiB", "last used, days ago", title=str(stages.root))
    entries = stages.entries()
    for stage in dict.fromkeys(entry.stage for entry in entries):
        mine = [entry for entry in entries if entry.stage == stage]
        size, age = sum(entry.size for entry in mine), min(entry.days for entry in mine)
        table.add_row(stage, str(len(mine)), f"{size / MIB:.1f}", f"{age:.1f}")
    size = sum(entry.size for entry in entries)
    table.add_row("all", str(len(entries)), f"{size / MIB:.1f}", "")
    Console().print(table)


def _prune_cache(stages: Cache, days: float, stage: str | None, dry_run: bool) -> None:
    """Remove what is of no use, or was not used for so many days, of a stage or of all."""
    entries = stages.entries()
    old = [e for e in entries if (e.days >= days or not e.useful) and stage in (None, e.stage)]
    removed = [e for e in old if stages.remove(e, dry_run)]
    size = sum(entry.size for entry in removed) / MIB
    would = "would remove" if dry_run else "removed"
    print(f"{would} {len(removed)} of {len(entries)} entries, {size:.1f} MiB")
    if len(removed) < len(old):
        print(f"{len(old) - len(removed)} are being built or checked by a job, and stay")


def sync(arguments: list[str]) -> int:
    """Upload the finished results of a study to W&B; 1 where W&B did not take all of it.

    Every result goes to the run of its id, also where it was uploaded before; then the frontier.
    """
    if not arguments or "=" in arguments[0]:
        sys.exit("usage: python -m pruning sync outputs/<study> [tracker.field=value ...]")
    study, overrides = Path(arguments[0]), arguments[1:]
    tracker = compose(["tracker=wandb", "tracker.mode=online", *overrides]).tracker
    assert tracker.name is Service.wandb
    if not (results := results_of(study)):
        sys.exit(NOTHING.format(study))
    taken = [tracker.report(result, study / result.name) for result in results]
    taken.append(tracker.report_study(study))
    print(f"W&B took {sum(taken)} of {len(taken)} runs: {len(results)} results and the frontier")
    return 0 if all(taken) else 1


def dashboard(arguments: list[str]) -> int:
    """Save the W&B workspace and report of a study, and print where they are.

    Needs the extra `dashboard`, and a W&B account to save them in.
    """
    from pruning.results.dashboard import report, workspace

    if not arguments or "=" in arguments[0]:
        sys.exit("usage: python -m pruning dashboard outputs/<study> [entity=me] [project=name]")
    study = Path(arguments[0])
    tracker = compose(["tracker=wandb", *(f"tracker.{given}" for given in arguments[1:])]).tracker
    if not (results := results_of(study)):
        sys.exit(NOTHING.format(study))
    where = (study.name, results, tracker.entity or "", tracker.project)
    try:
        made = [workspace(*where), report(*where)]
    except ImportError:
        sys.exit("error: install the extra first: pip install 'inference-aware-pruning[dashboard]'")
    for page in made:
        print(page.save().url)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "report": report,
    "profile": profile,
    "cache": cache,
    "sync": sync,
    "dashboard": dashboard,
}


def main(arguments: list[str]) -> int:
    """Run a command; say which there are where none is named."""
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    return COMMANDS[arguments[0]](arguments[1:])
