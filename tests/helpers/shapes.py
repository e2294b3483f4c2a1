"""Shapes in few words: a pair is heads, a number a width."""

from collections.abc import Iterable, Mapping

from pruning.latency.grid import Levels
from pruning.models.shape import Shape, from_plain

Plain = tuple[int, int] | int


def shapes(plain: Iterable[Plain]) -> list[Shape]:
    """Return the shapes of pairs and numbers."""
    return [from_plain(each) for each in plain]


def costs(plain: Mapping[Plain, float]) -> Levels:
    """Return what shapes cost, given as pairs and numbers."""
    return {from_plain(each): ms for each, ms in plain.items()}
