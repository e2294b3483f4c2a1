"""The latency table: what each level of a sub-block costs, and what nothing can take away."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pruning.latency.grid import Levels, offered
from pruning.models.shape import Shape, from_text
from pruning.models.sites import Allocation, Site, shape
from pruning.system.files import write_text

Shapes = dict[Site, Shape]  # what is left of every site

SCHEMA = 1


@dataclass
class LatencyTable:
    """Milliseconds of one of each part of a block at every level, the largest first.

    A part takes as long in any block. Parts are `attention` and `ffn`, or single projections by
    their path. `rest` is what the end-to-end time holds beside them: embedding, norms, head.
    `lowered` is the residual of the monotone fit of each part: the most that it took off a level,
    as a share of the dense one.
    """

    parts: dict[str, Levels]
    rest: float
    blocks: int
    spread: float  # worst p90/p50 among the levels
    dense: float  # end to end, measured
    basis: str = "measured"  # or estimated; or counted, of parameters and operations
    unit: str = "ms"  # or, of a proxy, parameters or flop
    setting: dict[str, Any] = field(default_factory=dict)  # phase, batch, sequence, dtype ...
    environment: dict[str, Any] = field(default_factory=dict)  # that it was made in
    scales: dict[str, float] = field(default_factory=dict)  # of parts: within a model / alone
    anchors: dict[str, list[float]] = field(default_factory=dict)  # models: measured, predicted
    raw: dict[str, list[float]] = field(default_factory=dict)  # every time taken, in ms
    quantiles: dict[str, list[float]] = field(default_factory=dict)  # of raw: p25, p50, p75, p90
    lowered: dict[str, float] = field(default_factory=dict)  # of parts

    @property
    def runtime(self) -> str:
        """Return what executed the models; older tables say whether they were compiled."""
        older = "torch_compile" if self.setting.get("compile") else "torch"
        return self.setting.get("runtime", older)

    @property
    def alignment(self) -> int:
        """Return what widths are multiples of; 1 where the table says nothing of it."""
        return self.setting.get("alignment") or 1

    def ms(self, site: Site, level: Shape) -> float:
        """Return the milliseconds of a site."""
        return self.parts[site.part][level]

    def levels(self, site: Site) -> list[Shape]:
        """Return the levels of a site, as it is first; "gone" only where the site is removable.

        Those that are not faster than a level that contains them are never offered. A site that was
        cut before has what is left of the dense one's levels.
        """
        whole = site.whole
        levels = [level for level in offered(self.parts[site.part]) if whole.contains(level)]
        if levels[0] != whole:
            levels.insert(0, whole)
        return [level for level in levels if site.allows(level)]

    def predict(self, allocation: Allocation) -> float:
        """Return the end-to-end milliseconds of an allocation."""
        return self.total({site: shape(site, keep) for site, keep in allocation.items()})

    def total(self, shapes: Shapes) -> float:
        """Return the end-to-end milliseconds of what is left of every site."""
        return self.rest + sum(self.ms(site, left) for site, left in shapes.items())

    def has(self, shapes: Shapes) -> bool:
        """Tell whether every shape was timed."""
        return all(left in self.parts[site.part] for site, left in shapes.items())

    def budget(self, speedup: float) -> float:
        """Return the end-to-end milliseconds that a speedup allows."""
        return self.dense / speedup

    def most(self, sites: list[Site]) -> float:
        """Return the speedup of removing everything prunable, infinite where nothing is left."""
        left = self.rest + sum(min(self.ms(s, level) for level in self.levels(s)) for s in sites)
        return self.dense / left if left else math.inf

    def of_sites(self, sites: list[Site], blocks: int) -> "LatencyTable":
        """Return the table of another model of such parts."""
        dense = self.total({site: site.whole for site in sites})
        return replace(self, blocks=blocks, dense=dense)

    def check(self, speedup: float, sites: list[Site], hardware: str) -> None:
        """Refuse a speedup that removing everything prunable does not reach."""
        most = self.most(sites)
        if speedup > most:
            raise ValueError(
                f"speedup={speedup:g} cannot be met on hardware {hardware!r}: the most that "
                f"removing everything prunable gives is {most:.2f}; ask for less"
            )

    @property
    def predicts(self) -> str:
        """Return what a speedup is called of this table: predicted, estimated or counted."""
        return "predicted" if self.basis == "measured" else self.basis

    def residuals(self) -> dict[str, float]:
        """Return by which share the table is off for each whole model that it was fitted to."""
        return {name: told / ms - 1 for name, (ms, told) in self.anchors.items()}

    def write(self, path: Path) -> None:
        """Write the table as JSON, levels as "3x2" and "1536"."""
        parts = {
            part: {str(level): ms for level, ms in levels.items()}
            for part, levels in self.parts.items()
        }
        content = {"schema": SCHEMA, **asdict(replace(self, parts={})), "parts": parts}
        write_text(json.dumps(content, indent=1) + "\n", path)

    @classmethod
    def read(cls, path: Path) -> "LatencyTable":
        """Read a table that `write` wrote."""
        content = json.loads(path.read_text())
        if content.pop("schema", None) != SCHEMA:
            raise ValueError(f"{path} is not a latency table of schema {SCHEMA}")
        content["parts"] = {
            part: {from_text(name): ms for name, ms in levels.items()}
            for part, levels in content["parts"].items()
        }
        return cls(**content)


def combine(tables: Sequence[tuple[float, LatencyTable]], setting: dict[str, Any]) -> LatencyTable:
    """Return the sum of tables of the same levels, each so many times."""
    first = tables[0][1]
    parts = {
        part: {level: sum(n * t.parts[part][level] for n, t in tables) for level in levels}
        for part, levels in first.parts.items()
    }
    return LatencyTable(
        parts=parts,
        rest=sum(n * t.rest for n, t in tables),
        blocks=first.blocks,
        spread=max(t.spread for _, t in tables),
        dense=sum(n * t.dense for n, t in tables),
        basis=first.basis,
        unit=first.unit,
        setting=first.setting | setting,
        environment=first.environment,
        anchors={
            name: [sum(n * t.anchors[name][i] for n, t in tables) for i in range(2)]
            for name in first.anchors
        },
        raw={f"{_of(t)}: {name}": ms for _, t in tables for name, ms in t.raw.items()},
        quantiles={f"{_of(t)}: {name}": q for _, t in tables for name, q in t.quantiles.items()},
        lowered={p: max(t.lowered.get(p, 0.0) for _, t in tables) for p in first.lowered},
    )


def _of(table: LatencyTable) -> str:
    return "{phase} {batch} x {sequence}".format(**table.setting)
