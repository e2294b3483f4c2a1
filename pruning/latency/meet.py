"""The closed loop: prune, measure, correct the aim, until the measured speedup is the target."""

import logging
from dataclasses import dataclass, field
from statistics import median

import torch
from transformers import PreTrainedModel

from pruning.latency.clock import Timing
from pruning.latency.clock import speedup as ratio
from pruning.latency.hardware import Hardware
from pruning.latency.table import LatencyTable
from pruning.methods.levels import Levels
from pruning.models.shrink import shrink_, twin
from pruning.models.sites import Allocation, output_projection, set_weight_, weight
from pruning.search.search import Chooser

log = logging.getLogger(__name__)


@dataclass
class Met:
    """The pruned model whose measured speedup came nearest the target."""

    pruned: PreTrainedModel
    allocation: Allocation
    target: float
    predicted: float
    measured: float
    dense_timing: Timing
    pruned_timing: Timing
    rounds: list[dict[str, float]] = field(default_factory=list)


@torch.no_grad()
def build(dense: PreTrainedModel, levels: Levels, choice: list[int]) -> PreTrainedModel:
    """Return a shrunken model at one level per site; what stays whole is shared with `dense`."""
    pruned = shrink_(twin(dense), levels.allocation(choice))
    for (site, of), level in zip(levels.items(), choice, strict=True):
        if level and of.keeps[level].any():
            W = levels.kept_weight(site, level, weight(output_projection(dense, site)))
            set_weight_(output_projection(pruned, site), W)
    return pruned


def meet(
    dense: PreTrainedModel,
    levels: Levels,
    table: LatencyTable,
    choose: Chooser,
    hardware: Hardware,
    speedup: float,
) -> Met:
    """Prune to `speedup` as measured end to end, within `hardware.tolerance` where it can be had.

    What the table predicts and what is measured differ by a factor that barely depends on the
    allocation; each round divides the target by the median of the factors seen so far.
    """
    aim, best = speedup, None
    rounds: list[dict[str, float]] = []
    for _ in range(hardware.rounds):
        choice = choose(table.budget(aim))
        if choice is None:
            log.warning("no allocation is predicted to reach %.2fx: keeping the nearest round", aim)
            break
        pruned = build(dense, levels, choice)
        allocation = levels.allocation(choice)
        timings = hardware.compare(dense, pruned)
        measured, doubt = ratio(*timings)
        predicted = table.dense / table.predict(allocation)
        rounds.append({"aim": aim, "predicted": predicted, "measured": measured, "stderr": doubt})
        log.info(
            "aim %.3fx: predicted %.3fx, measured %.3fx ± %.3f", aim, predicted, measured, doubt
        )
        if best is None or abs(measured - speedup) < abs(best.measured - speedup):
            best = Met(pruned, allocation, speedup, predicted, measured, *timings, rounds)
        if abs(measured / speedup - 1) <= hardware.tolerance or speedup == 1:
            break
        factor = median(seen["measured"] / seen["predicted"] for seen in rounds)
        aim = max(1.0, speedup / factor)
    if best is None:
        raise ValueError(
            f"speedup={speedup:g} cannot be met with this search: the most it gives on hardware "
            f"{hardware.name!r} is {_most(choose, table, speedup):.2f}; ask for less, or use "
            "search=calibrated, which may remove attention and whole sub-blocks"
        )
    if abs(best.measured / speedup - 1) > hardware.tolerance and speedup > 1:
        log.warning(
            "the nearest measured speedup after %d rounds is %.3fx, not %.3fx within %.0f %%",
            len(rounds),
            best.measured,
            speedup,
            100 * hardware.tolerance,
        )
    return best


def _most(choose: Chooser, table: LatencyTable, impossible: float) -> float:
    """Return the largest speedup that a search has a choice for, below an impossible one."""
    possible = 1.0
    while impossible - possible > 0.005:
        middle = (possible + impossible) / 2
        if choose(table.budget(middle)) is None:
            impossible = middle
        else:
            possible = middle
    return possible
