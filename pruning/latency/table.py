"""The latency table: what each level of a sub-block costs, and what nothing can take away."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pruning.models.sites import Allocation, Kind, Site, shape

Shape = tuple[int, int] | int  # (KV groups, query heads per group) of attention, or FFN width
Shapes = dict[Site, Shape]  # what is left of every site


@dataclass
class LatencyTable:
    """Milliseconds of one attention and one FFN sub-block at every level; blocks are alike.

    `rest` is what the end-to-end time holds beside the sub-blocks: embedding, final norm, head.
    """

    attention: dict[Shape, float]
    ffn: dict[Shape, float]
    rest: float
    blocks: int
    spread: float  # worst p90/p50 among the levels
    dense: float  # end to end, measured

    def ms(self, kind: Kind, level: Shape) -> float:
        """Return the milliseconds of one sub-block."""
        return (self.attention if kind is Kind.ATTENTION else self.ffn)[level]

    def levels(self, site: Site) -> list[Shape]:
        """Return the levels of a site, dense first; "gone" only where the site is removable."""
        if site.kind is Kind.FFN:
            return list(self.ffn)
        return [level for level in self.attention if site.removable or level != (0, 0)]

    def predict(self, allocation: Allocation) -> float:
        """Return the end-to-end milliseconds of an allocation."""
        return self.total({site: shape(site, keep) for site, keep in allocation.items()})

    def total(self, shapes: Shapes) -> float:
        """Return the end-to-end milliseconds of what is left of every site."""
        return self.rest + sum(self.ms(site.kind, left) for site, left in shapes.items())

    def knows(self, shapes: Shapes) -> bool:
        """Tell whether every shape was timed."""
        return all(left in self.attention or left in self.ffn for left in shapes.values())

    def budget(self, speedup: float) -> float:
        """Return the end-to-end milliseconds that a speedup allows."""
        return self.dense / speedup

    def most(self, sites: list[Site]) -> float:
        """Return the speedup of removing everything prunable."""
        least = sum(min(self.ms(s.kind, level) for level in self.levels(s)) for s in sites)
        return self.dense / (self.rest + least)

    def check(self, speedup: float, sites: list[Site], hardware: str) -> None:
        """Refuse a speedup that removing everything prunable does not reach."""
        most = self.most(sites)
        if speedup > most:
            raise ValueError(
                f"speedup={speedup:g} cannot be met on hardware {hardware!r}: the most that "
                f"removing everything prunable gives is {most:.2f}; ask for less"
            )

    def write(self, path: Path) -> None:
        """Write the table as JSON, levels as "3x2" and "1536"."""
        content = asdict(self)
        content["attention"] = {f"{g}x{h}": ms for (g, h), ms in self.attention.items()}  # type: ignore[misc]
        path.write_text(json.dumps(content, indent=1))

    @classmethod
    def read(cls, path: Path) -> "LatencyTable":
        """Read a table that `write` wrote."""
        content = json.loads(path.read_text())
        content["attention"] = {
            tuple(map(int, key.split("x"))): ms for key, ms in content["attention"].items()
        }
        content["ffn"] = {int(width): ms for width, ms in content["ffn"].items()}
        return cls(**content)
