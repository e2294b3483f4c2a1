"""Read latency tables: our own, and the text format of the tools of ZipLM's family."""

import json
from collections.abc import Sequence
from pathlib import Path

from pruning.latency.grid import Levels, monotone
from pruning.latency.shapes import largest
from pruning.latency.table import LatencyTable, combine
from pruning.models.shape import Heads, Width
from pruning.models.sites import Kind, Site

MACHINE = {"cpu", "gpu", "threads"}  # of an environment
PARTS = {"attention": Kind.ATTENTION, "fc": Kind.FFN}


def read(path: Path, prunable: Sequence[Site]) -> LatencyTable:
    """Read a table from a file for the sites `prunable`; ValueError where it is none."""
    where = f"hardware.path={str(path)!r}"
    try:
        if path.suffix == ".json":
            return LatencyTable.read(path)
        return from_text(path.read_text(), prunable)
    except (OSError, TypeError, KeyError, IndexError, ValueError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{where} is no latency table ({error}): give a JSON file that `python -m "
            "pruning profile` wrote, or a text file with base, prunable, attention and fc"
        ) from error


def from_text(content: str, prunable: Sequence[Site]) -> LatencyTable:
    """Read `base`, `prunable`, and `attention` and `fc` with lines of seconds and sparsity.

    A level is the share of a sub-block that is gone: of its KV groups, with all their query heads,
    or of its FFN channels. 1 is the sub-block gone, of no time.
    """
    lines = [line.split() for line in content.splitlines() if line.strip()]
    seconds: dict[str, float] = {}
    parts: dict[str, Levels] = {}
    sites = {site.kind: site for site in largest(prunable).values()}
    part = ""
    for words in lines:
        if words[0] in ("base", "prunable", *PARTS):
            part = words[0]
        elif part in PARTS:
            site, left = sites[PARTS[part]], 1 - float(words[1])
            ms = parts.setdefault(PARTS[part].value, {})
            if site.kind is Kind.FFN:
                ms[Width(round(left * site.units))] = 1e3 * float(words[0])
            else:
                groups = round(left * site.groups)
                level = Heads(groups, site.heads_per_group) if groups else site.gone
                ms[level] = 1e3 * float(words[0])
        else:
            seconds[part] = float(words[0])
    parts = {
        name: monotone(
            {level: ms[level] for level in sorted(ms, key=lambda s: s.sizes, reverse=True)}
        )
        for name, ms in parts.items()
    }
    for name, gone in ((Kind.ATTENTION.value, Heads(0, 0)), (Kind.FFN.value, Width(0))):
        parts[name][gone] = 0.0
    rest = 1e3 * (seconds["base"] - seconds["prunable"])
    count = len({site.block for site in prunable})
    dense = rest + count * sum(next(iter(ms.values())) for ms in parts.values())  # if all are alike
    setting = {"phase": "prefill", "batch": 0, "sequence": 0, "tokens": 0, "dtype": "unknown"}
    return LatencyTable(parts, rest, count, 1.0, dense, setting=setting)


def at_batch(tables: Sequence[LatencyTable], batch: int | None, where: str) -> LatencyTable:
    """Return the table of a batch: one of these, or between two of them, linear in the batch.

    Then `setting["between"]` are the batches of the two, and `setting["interpolation"]` is the
    largest error in the dense time of doing so for those tables that have neighbours on both sides;
    null where there are none. ValueError for tables that differ in more than the batch.
    """
    ordered = sorted(tables, key=lambda table: table.setting["batch"])
    for table in ordered[1:]:
        if unlike := _unlike(ordered[0], table):
            raise ValueError(
                f"{where} has tables of {unlike}: only tables that differ in the batch alone can "
                "serve batches between them; choose a narrower pattern, or profile them alike"
            )
    there = [table.setting["batch"] for table in ordered]
    if batch is None and len(ordered) == 1:
        return ordered[0]
    if batch in there:
        return ordered[there.index(batch)]
    if batch is None or not there[0] < batch < there[-1]:
        raise ValueError(
            f"{where} has tables of batch {', '.join(map(str, there))} and hardware.batch={batch} "
            "is not between them: choose one that is, or profile it on that machine"
        )
    errors = [
        abs(between(ordered[i - 1], ordered[i + 1], there[i]).dense / ordered[i].dense - 1)
        for i in range(1, len(ordered) - 1)
    ]
    above = next(index for index, other in enumerate(there) if other > batch)
    interpolated = between(ordered[above - 1], ordered[above], batch)
    interpolated.setting["between"] = [there[above - 1], there[above]]
    interpolated.setting["interpolation"] = max(errors, default=None)
    return interpolated


def _unlike(one: LatencyTable, other: LatencyTable) -> str:
    """Say what two tables differ in besides the batch, of all that both say."""
    first, second = (
        table.setting
        | {key: table.environment[key] for key in MACHINE & table.environment.keys()}
        | {"basis": table.basis, "unit": table.unit, "blocks": table.blocks}
        for table in (one, other)
    )
    return ", ".join(
        f"{key} {first[key]} and {second[key]}"
        for key in first
        if key in second and key != "batch" and first[key] != second[key]
    )


def between(below: LatencyTable, above: LatencyTable, batch: int) -> LatencyTable:
    """Interpolate the times of two batches."""
    first, last = below.setting["batch"], above.setting["batch"]
    share = (batch - first) / (last - first)
    return combine([(1 - share, below), (share, above)], below.setting | {"batch": batch})
