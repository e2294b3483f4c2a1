"""The command line beside launch.py: `python -m pruning COMMAND ...`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pruning.results.result import Result
    from pruning.system.cache import Cache

MIB = 2**20

app = typer.Typer(
    help="What there is to do beside pruning, which launch.py does.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Study = Annotated[
    Path, typer.Argument(metavar="STUDY", help="directory of its jobs, outputs/<study>")
]
Fields = Annotated[list[str] | None, typer.Argument(metavar="FIELD=VALUE")]


@app.command()
def report(study: Study) -> None:
    """Write tables, plots and a page of a study.

    The table is printed too.
    """
    from pruning.results import frontier, points

    written = frontier.write(study.resolve(), html=True)
    if written is None:
        raise points.no_results(study)
    print(written.read_text(encoding="utf-8"))
    print(f"The page: {written.with_suffix('.html')}")


@app.command()
def profile(fields: Fields = None) -> None:
    """Measure a latency table and save it.

    FIELD=VALUE are those of launch.py; no weights are needed. Prune for the table on any machine
    with `hardware=file hardware.path=TABLE`. `profile show TABLE` prints a table, and draws it.
    """
    from pruning.job.profile import measure, show

    fields = fields or []
    if fields[:1] == ["show"] and len(fields) == 2:
        return show(Path(fields[1]))
    if odd := [field for field in fields if "=" not in field]:
        raise typer.BadParameter(f"{odd[0]!r} is neither FIELD=VALUE nor `show TABLE`")
    path = measure(fields)
    show(path)
    print(path)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(metavar="OUTPUTS/STUDY/JOB/model")],
    to: Annotated[
        str,
        typer.Option(
            help="gguf, onnx, openvino, or several: gguf,onnx (or runtimes: llama_cpp, onnxruntime)"
        ),
    ],
    precision: Annotated[
        str | None,
        typer.Option(help="runtime.precision of the formats that have it, such as q8_0 or int8"),
    ] = None,
) -> None:
    """Write a finished model for other engines.

    What they serve stands beside `model`, and is compared with PyTorch before this says so.
    """
    from pruning.job.export import engines, export

    runtimes = engines(to, precision)
    answers = export(model.resolve(), runtimes)
    for runtime, (name, parity) in zip(runtimes, answers.items(), strict=True):
        alike = f"{parity.same:.0%} same tokens, KL {parity.kl:.2g} nats"
        print(f"{model.parent / name} ({runtime.label}): {alike}")


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="of a table; none: list them")] = None,
    add: Annotated[
        Path | None, typer.Option(metavar="RESULT.JSON", help="add our cells of a finished job")
    ] = None,
    row: Annotated[
        str | None, typer.Option(help="of which row, where the job differs from every recipe")
    ] = None,
) -> None:
    """Show tables of papers, and ours beside them.

    Without a name: which there are, what was run, and what each takes. With one: the commands that
    make ours, published cells and our cells, and how the protocols differ.
    """
    from pruning.reproduction import page, tables

    if name is None:
        if add is not None or row is not None:
            raise typer.BadParameter("--add and --row need the NAME of a table")
        print(page.summary([tables.load(each) for each in tables.names()]))
        return print("\nOne of them, with its commands: python -m pruning reproduce NAME")
    table = tables.load(name)
    if add is not None:
        print(f"added to row {tables.add(table, add, row).name!r} of {name}\n")
    print(page.section(table))


class Action(StrEnum):
    """What to do with the cache."""

    show = "show"
    prune = "prune"


@app.command()
def cache(
    action: Annotated[Action, typer.Argument()] = Action.show,
    root: Annotated[Path, typer.Option(envvar="PRUNING_CACHE")] = Path("~/.cache/pruning"),
    days: Annotated[float, typer.Option(help="prune what was unused for so long")] = 30,
    stage: Annotated[str | None, typer.Option(help="prune only this one")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go")] = False,
) -> None:
    """Show what the cache holds, or prune it.

    Pruned is what was not used lately, and what killed jobs left. `checkpoints` are those of
    trainings that were killed: the same command goes on from them, so they stay until they were not
    used lately.
    """
    from pruning.system.cache import Cache

    stages = Cache(root)
    if stages.root.is_file():
        raise ValueError(f"--root={root} is a file: give the directory of a cache")
    if action is Action.show:
        _show_cache(stages)
    else:
        _prune_cache(stages, days, stage, dry_run)


def _show_cache(stages: "Cache") -> None:
    """Print entries and size of every stage."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "entries", "MiB", "last used, days ago", title=str(stages.root))
    entries = stages.entries()
    for stage in dict.fromkeys(entry.stage for entry in entries):
        mine = [entry for entry in entries if entry.stage == stage]
        size, age = sum(entry.size for entry in mine), min(entry.days for entry in mine)
        table.add_row(stage, str(len(mine)), f"{size / MIB:.1f}", f"{age:.1f}")
    size = sum(entry.size for entry in entries)
    table.add_row("all", str(len(entries)), f"{size / MIB:.1f}", "")
    Console().print(table)


def _prune_cache(stages: "Cache", days: float, stage: str | None, dry_run: bool) -> None:
    """Remove what is of no use, or was not used for so many days, of a stage or of all."""
    entries = [entry for entry in stages.entries() if stage in (None, entry.stage)]
    old = [e for e in entries if e.days >= days or not e.useful]
    removed = [e for e in old if stages.remove(e, dry_run)]
    size = sum(entry.size for entry in removed) / MIB
    would = "would remove" if dry_run else "removed"
    where = f" of {stage}" if stage else ""
    print(
        f"{would} {len(removed)} of {len(entries)} entries{where}, {size:.1f} MiB: what was not "
        f"used for {days:g} days (--days), or is of no use"
    )
    if busy := len(old) - len(removed):
        print(f"a job builds or checks {busy} of them now, which {'stay' if busy > 1 else 'stays'}")


@app.command()
def sync(study: Study, fields: Fields = None) -> None:
    """Upload the results of a study to W&B.

    Their files are all it needs; FIELD is such as tracker.entity. Every result goes to the run of
    its id, also where it was uploaded before; then the frontier. The exit code is 1 where W&B did
    not take all of it.
    """
    from pruning.composition import compose
    from pruning.results.tracker import refuse_without_key

    tracker = compose(["tracker=wandb", "tracker.mode=online", *(fields or [])]).tracker
    results = _results(study)
    refuse_without_key()
    taken = [tracker.report(result, study / result.name) for result in results]
    taken.append(tracker.report_study(study))
    print(f"W&B took {sum(taken)} of {len(taken)} runs: {len(results)} results and the frontier")
    raise typer.Exit(0 if all(taken) else 1)


@app.command()
def dashboard(study: Study, fields: Fields = None) -> None:
    """Save a W&B workspace and report of a study.

    FIELD is entity or project. Needs the extra `dashboard`, and a W&B account to save them in.
    """
    from pruning.composition import compose
    from pruning.results.dashboard import report, workspace
    from pruning.results.tracker import refuse_without_key
    from pruning.system.extras import pip_install

    tracker = compose(["tracker=wandb", *(f"tracker.{field}" for field in fields or [])]).tracker
    where = (study.name, _results(study), tracker.entity or "", tracker.project)
    refuse_without_key()
    try:
        made = [workspace(*where), report(*where)]
    except ImportError as error:
        remedy = pip_install("dashboard")
        raise ValueError(f"the extra `dashboard` is not installed: {remedy}") from error
    for page in made:
        print(page.save().url)


def _results(study: Path) -> "list[Result]":
    from pruning.results.points import no_results, read_results

    if not (results := read_results(study)):
        raise no_results(study)
    return results


def mistake(error: Exception) -> str | None:
    """Return in one line what a user can mend; None for errors of ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from pruning.config_errors import explained_config
    from pruning.system.writing import explained, of_files

    if said := explained_config(error):
        return said
    if isinstance(error, (ValueError, HydraException, OmegaConfBaseException)):
        return " ".join(str(error).split())
    return explained(error) if of_files(error) else None


def main(arguments: list[str]) -> int:
    """Run a command and return its exit code: 1 for mistakes, 2 for commands that there are not."""
    from pruning.system.streams import steady_streams

    with steady_streams() as fault_of_streams:
        try:
            app(arguments or ["--help"], prog_name="python -m pruning")
        except SystemExit as end:
            code, said = int(end.code or 0), fault_of_streams()
        except Exception as error:
            if (said := mistake(error)) is None:
                raise
            code = 1
        if said:
            print("error:", said, file=sys.stderr)
    return code or int(bool(said))
