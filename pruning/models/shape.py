"""What is left of a site: heads of attention, experts, or the width of anything else."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heads:
    """What is left of attention: as many query heads in every KV group that is left."""

    groups: int  # KV groups
    per_group: int  # query heads of each

    def __str__(self) -> str:
        return f"{self.groups}x{self.per_group}"

    @property
    def units(self) -> int:
        """Count the query heads."""
        return self.groups * self.per_group

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return what shapes are sorted by: groups, then heads of each."""
        return self.groups, self.per_group

    @property
    def plain(self) -> tuple[int, int] | int:
        """Return it as files and keys of cached stages hold it."""
        return self.groups, self.per_group

    def contains(self, other: "Shape") -> bool:
        """Tell whether it has all that another has."""
        here = isinstance(other, Heads)
        return here and self.groups >= other.groups and self.per_group >= other.per_group


@dataclass(frozen=True)
class Width:
    """What is left of an FFN, a projection or a cluster of tokens: channels, or a rank."""

    units: int

    def __str__(self) -> str:
        return str(self.units)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return what shapes are sorted by."""
        return (self.units,)

    @property
    def plain(self) -> tuple[int, int] | int:
        """Return it as files and keys of cached stages hold it."""
        return self.units

    def contains(self, other: "Shape") -> bool:
        """Tell whether it has all that another has."""
        return isinstance(other, Width) and self.units >= other.units


@dataclass(frozen=True)
class Experts:
    """What is left of the experts of a block: as many channels in each that is left.

    Weights of experts are stacked in one tensor, which uneven ones could not be.
    """

    experts: int
    width: int  # channels of each

    def __str__(self) -> str:
        return f"{self.experts}*{self.width}"

    @property
    def units(self) -> int:
        """Count the channels of all."""
        return self.experts * self.width

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return what shapes are sorted by: experts, then the width of each."""
        return self.experts, self.width

    @property
    def plain(self) -> str:
        """Return it as files and keys of cached stages hold it."""
        return str(self)

    def contains(self, other: "Shape") -> bool:
        """Tell whether it has all that another has."""
        here = isinstance(other, Experts)
        return here and self.experts >= other.experts and self.width >= other.width


Shape = Heads | Width | Experts


def from_text(text: str) -> Shape:
    """Read a shape as `str` writes it: "3x2", "8*96" or "1536"; ValueError where it is none."""
    experts, star, width = text.partition("*")
    if star:
        return Experts(int(experts), int(width))
    groups, x, per_group = text.partition("x")
    return Heads(int(groups), int(per_group)) if x else Width(int(groups))


def from_plain(plain: Sequence[int] | int | str) -> Shape:
    """Return the shape that `plain` gives, also once JSON has made a list of a pair."""
    if isinstance(plain, str):
        return from_text(plain)
    return Width(plain) if isinstance(plain, int) else Heads(*plain)
