"""Measure a latency table and save it; or show one."""

import re
from pathlib import Path

from pruning.composition import compose
from pruning.latency.plot import draw, tables
from pruning.latency.table import LatencyTable
from pruning.system.cache import Cache
from pruning.system.files import write_text

PROFILES = Path("outputs/profiles")


def measure(overrides: list[str]) -> Path:
    """Profile the hardware that a config names and write the table; return where it is."""
    experiment = compose(overrides)
    cache, hardware = Cache(experiment.cache, experiment.verify_cache), experiment.hardware
    model = experiment.model.skeleton(cache, hardware.open(), experiment.task)
    sites = experiment.method.sites(model)
    table = hardware.profile(model, sites, cache, experiment.runtime)
    path = PROFILES / file_name(experiment.model.name, hardware.name, table)
    table.write(path)
    return path


def file_name(model: str, hardware: str, table: LatencyTable) -> str:
    """Return what a table is saved as, without what an override would have to quote."""
    setting = "{phase}-{batch}x{sequence}-{dtype}".format(**table.setting)
    name = f"{model}-{hardware}-{setting}"
    if table.runtime != "torch":
        name += "-" + re.sub(r"[^\w.]+", "-", table.runtime)
    return f"{name}.json"


def show(path: Path) -> None:
    """Print a table, and draw it beside its file."""
    try:
        table = LatencyTable.read(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no latency table ({error}): give a JSON file that `python -m pruning "
            "profile` wrote"
        ) from error
    for each in tables(table, path.stem):
        print(each)
    picture = path.with_suffix(".svg")
    write_text(draw(table, path.stem), picture)
    print(f"\n{picture}")
