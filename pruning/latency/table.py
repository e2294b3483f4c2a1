"""The latency table: what each level of a sub-block costs, and what nothing can take away."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pruning.models.sites import Allocation, Kind, Site, shape

Shape = tuple[int, int] | int  # (KV groups, query heads per group), FFN width, or rank
Shapes = dict[Site, Shape]  # what is left of every site


@dataclass
class LatencyTable:
    """Milliseconds of one of each part of a block at every level, dense first; blocks are alike.

    Parts are `attention` and `ffn`, or single projections by their path. `rest` is what the
    end-to-end time holds beside them, more than 0: embedding, norms, head.
    """

    parts: dict[str, dict[Shape, float]]
    rest: float
    blocks: int
    spread: float  # worst p90/p50 among the levels
    dense: float  # end to end, measured

    def ms(self, site: Site, level: Shape) -> float:
        """Return the milliseconds of a site."""
        return self.parts[site.part][level]

    def levels(self, site: Site) -> list[Shape]:
        """Return the levels of a site, dense first; "gone" only where the site is removable.

        Of the ranks, those that are faster than every larger one and than the dense projection.
        """
        of = self.parts[site.part]
        if site.kind is Kind.LINEAR:
            return [rank for rank, ms in of.items() if all(ms < of[r] for r in of if r > rank)]  # type: ignore[operator]
        return [level for level in of if site.removable or level != (0, 0)]

    def predict(self, allocation: Allocation) -> float:
        """Return the end-to-end milliseconds of an allocation."""
        return self.total({site: shape(site, keep) for site, keep in allocation.items()})

    def total(self, shapes: Shapes) -> float:
        """Return the end-to-end milliseconds of what is left of every site."""
        return self.rest + sum(self.ms(site, left) for site, left in shapes.items())

    def knows(self, shapes: Shapes) -> bool:
        """Tell whether every shape was timed."""
        return all(left in self.parts[site.part] for site, left in shapes.items())

    def budget(self, speedup: float) -> float:
        """Return the end-to-end milliseconds that a speedup allows."""
        return self.dense / speedup

    def most(self, sites: list[Site]) -> float:
        """Return the speedup of removing everything prunable."""
        least = sum(min(self.ms(s, level) for level in self.levels(s)) for s in sites)
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
        content["parts"] = {
            part: {_text(level): ms for level, ms in of.items()} for part, of in self.parts.items()
        }
        path.write_text(json.dumps(content, indent=1))

    @classmethod
    def read(cls, path: Path) -> "LatencyTable":
        """Read a table that `write` wrote."""
        content = json.loads(path.read_text())
        content["parts"] = {
            part: {_level(text): ms for text, ms in of.items()}
            for part, of in content["parts"].items()
        }
        return cls(**content)


def _text(level: Shape) -> str:
    return "x".join(map(str, level)) if isinstance(level, tuple) else str(level)


def _level(text: str) -> Shape:
    first, x, second = text.partition("x")
    return (int(first), int(second)) if x else int(first)
