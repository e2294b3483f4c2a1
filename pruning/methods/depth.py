"""Depth pruning: whole blocks leave, those that change the residual stream least first."""

from dataclasses import dataclass
from typing import ClassVar

from pruning.methods.method import Method, Plan, Subject
from pruning.search.search import NoSearch


@dataclass
class Depth(Method):
    """Block Influence of ShortGPT: 1 - E[cos(stream in front of a block, stream behind it)]."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.03853"
    searches: ClassVar[type[NoSearch]] = NoSearch

    name: str = "depth"

    def plan(self, subject: Subject) -> Plan:
        """Order the blocks by their influence on the calibration text."""
        from pruning.methods.blocks import Blocks, influence, removable

        s = subject
        with s.clock("calibrate"):
            scores = influence(s.dense, s.identity, s.batches, s.cache)
        order = sorted(removable(s.dense), key=lambda index: scores[index])
        return Blocks(s.dense, order, s.table)
