"""Measure a latency table and save it, to prune for this machine on any other; or show one.

python -m pruning.profile model=llama2-7b hardware.phase=decode hardware.sequence=512
python -m pruning.profile show outputs/profiles/llama2-7b-local-decode-1x512-bfloat16.json

No weights are needed: only the model's config.json is read. Prune with `hardware=file
hardware.path=TABLE`.
"""

import sys
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from pruning.experiment import compose
from pruning.results.writing import explained, of_files

PROFILES = Path("outputs/profiles")


def measure(overrides: list[str]) -> Path:
    """Profile the hardware that a config names and write the table; return where it is."""
    from pruning.results.cache import Cache

    experiment = compose(overrides)
    cache, hardware = Cache(experiment.cache), experiment.hardware
    model = experiment.model.skeleton(cache, hardware.open(), experiment.task)
    table = hardware.profile(model, experiment.method.sites(model), cache)
    size = "{phase}-{batch}x{sequence}-{dtype}".format(**table.setting)
    size += "-compiled" * table.setting.get("compile", False)
    path = PROFILES / f"{experiment.model.name}-{hardware.name}-{size}.json"
    table.write(path)
    return path


def show(path: Path) -> None:
    """Print a table, and draw it beside its file."""
    from pruning.latency.picture import draw, tables
    from pruning.latency.table import LatencyTable
    from pruning.results.result import write_text

    try:
        table = LatencyTable.read(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no latency table: {error}") from error
    for each in tables(table, path.stem):
        print(each)
    picture = path.with_suffix(".svg")
    write_text(draw(table, path.stem), picture)
    print(f"\n{picture}")


def main(arguments: list[str]) -> int:
    """Run the command line."""
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
