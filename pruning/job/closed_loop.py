"""The closed loop: prune, measure, correct the aim, until the measured speedup is the target."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from transformers import PreTrainedModel

from pruning.latency.hardware import Hardware
from pruning.latency.measurement import Measurement
from pruning.latency.table import LatencyTable, Shapes
from pruning.latency.timer import Timing
from pruning.latency.timer import speedup as ratio
from pruning.methods.method import Plan
from pruning.models.sites import Allocation, shape
from pruning.models.streamed import is_streamed
from pruning.results.result import times
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.torch_eager import EAGER
from pruning.system.stopwatch import Stopwatch

log = logging.getLogger(__name__)

Make = Callable[[Shapes], tuple[PreTrainedModel, Allocation]]

CARE = 1.0  # standard errors by which a round has to be inside the tolerance to be confirmed


@dataclass(frozen=True)
class SpeedTarget:
    """How many times as fast a model is to be, on which hardware and in which runtime."""

    speedup: float | None  # None: the plan's own shapes
    hardware: Hardware
    runtime: Runtime = field(default_factory=lambda: EAGER)


@dataclass(frozen=True)
class ClosedLoopResult:
    """The pruned model whose measured speedup came nearest the target.

    Speedup and timings are those of the last round that `confirms`: taken when the choice was made.
    """

    pruned: PreTrainedModel
    allocation: Allocation
    target: float | None
    predicted: float | None  # None where a shape is not in the table
    measured: float | None  # None where the hardware is not here
    dense_timing: Timing
    pruned_timing: Timing
    rounds: tuple[dict[str, Any], ...] = ()
    updates: tuple[dict[str, Any], ...] = ()  # of the plan that made the model

    @property
    def reached(self) -> float:
        """Return the speedup as it is known best: measured, or else predicted."""
        speedup = self.predicted if self.measured is None else self.measured
        assert speedup is not None
        return speedup


@dataclass
class _Made:
    """A model of some shapes, to time."""

    model: PreTrainedModel
    allocation: Allocation
    shapes: Shapes
    aim: float | None
    predicted: float | None


class _Loop:
    """What a closed loop makes and times; shapes alone decide how long a model takes."""

    def __init__(
        self,
        dense: PreTrainedModel,
        table: LatencyTable,
        how: Measurement,
        target: float | None,
        clock: Stopwatch,
    ):
        self.dense, self.table, self.how = dense, table, how
        self.target, self.clock = target, clock
        self.rounds: tuple[dict[str, Any], ...] = ()
        self.factors: list[float] = []  # measured / predicted, of every timing
        self._pairs: dict[tuple, tuple[Timing, Timing]] = {}  # by shapes

    def make(self, make: Make, shapes: Shapes, aim: float | None) -> _Made:
        """Make a model."""
        with self.clock("prune"):
            model, allocation = make(shapes)
        return _Made(model, allocation, shapes, aim, predicted_speedup(self.table, allocation))

    def time(self, made: _Made, confirms: bool = False) -> ClosedLoopResult:
        """Time a model against the dense one, and note it."""
        with self.clock("measure"):
            slow, fast = self.how.compare(self.dense, made.model, confirms)
        pairs = self._pairs.setdefault(tuple(made.shapes.items()), (Timing([]), Timing([])))
        for timing, new in zip(pairs, (slow, fast), strict=True):
            timing.values.extend(new.values)
        speed = self.target, made.predicted, None
        met = ClosedLoopResult(made.model, made.allocation, *speed, slow, fast, self.rounds)
        met = noted(met, made.aim, confirms)
        self.rounds = met.rounds
        assert met.measured is not None
        if made.predicted is not None:
            self.factors.append(met.measured / made.predicted)
        return met

    def off(self, made: _Made, errors: float = 0.0) -> float:
        """Return by which share all pairs of these shapes are off the target, and errors more."""
        assert self.target is not None
        middle, stderr = ratio(*self._pairs[tuple(made.shapes.items())])
        return (abs(middle - self.target) + errors * stderr) / self.target


def prune_to_speedup(
    dense: PreTrainedModel,
    plan: Plan,
    table: LatencyTable,
    target: SpeedTarget,
    clock: Stopwatch,
) -> ClosedLoopResult:
    """Prune to a speedup as measured end to end, within `hardware.tolerance` where it can be had.

    What the table predicts and what is measured differ by a factor that barely depends on the
    allocation; each round divides the target by the median of the factors seen so far. A timing
    that a choice depends on flatters what is chosen, so that this is timed once more, longer: that
    timing alone is reported, and where it is outside the tolerance another round follows. Without a
    speedup the plan's own shapes are built and timed. Where the hardware is not here, the table
    decides alone.
    """
    speedup = target.speedup
    if (how := target.hardware.measurement(dense, target.runtime)) is None:
        return prune_by_table(plan, table, target, clock)
    loop = _Loop(dense, table, how, speedup, clock)
    if speedup is None or speedup == 1:  # no choice depends on what is measured
        shapes = plan.fixed_shapes if speedup is None else plan.choose(table.budget(speedup))
        if shapes is None:
            raise _impossible(plan, table, target)
        return loop.time(loop.make(plan.build, shapes, speedup), confirms=True)
    aim, nearest, met = speedup, None, None
    for _ in range(how.rounds):
        shapes = plan.choose(table.budget(aim))
        if shapes is None:
            log.warning("no allocation is predicted to reach %.2fx: keeping the nearest round", aim)
            break
        made = loop.make(plan.timing_model, shapes, aim)
        loop.time(made)
        near = loop.off(made, CARE) <= how.tolerance
        confirmation = loop.time(made, confirms=True) if near else None
        if confirmation and met_within(confirmation, how):
            nearest, met = made, confirmation
            break
        if nearest is None or loop.off(made) <= loop.off(nearest):
            nearest = made
        aim = max(1.0, speedup / median(loop.factors))
    if nearest is None:
        raise _impossible(plan, table, target)
    if plan.is_draft(nearest.shapes):
        nearest, met = loop.make(plan.build, nearest.shapes, nearest.aim), None
    met = met or loop.time(nearest, confirms=True)
    if not met_within(met, how):
        log.warning(
            "the nearest model after %d timings has a measured speedup of %.3fx, not %.3fx within "
            "%.0f %%",
            len(loop.rounds),
            met.reached,
            speedup,
            100 * how.tolerance,
        )
    return met


def met_within(met: ClosedLoopResult, how: Measurement) -> bool:
    """Tell whether a speedup is within the tolerance of its target, if it has one."""
    return met.target is None or abs(met.reached / met.target - 1) <= how.tolerance


def noted(met: ClosedLoopResult, aim: float | None, confirms: bool) -> ClosedLoopResult:
    """Return it with the speedup that its timings say, and these among its rounds."""
    measured, doubt = ratio(met.dense_timing, met.pruned_timing)
    entry = {
        "aim": aim,
        "predicted": met.predicted,
        "measured": measured,
        "stderr": doubt,
        "pairs": len(met.dense_timing.values),
        "confirms": confirms,
    }
    if is_streamed(met.pruned):
        entry["stands_in"] = True  # what was timed has its shapes, and shares memory
    told = times(aim), times(met.predicted), measured, doubt
    what = ", confirming what was chosen" if confirms else ""
    log.info("aim %s: predicted %s, measured %.3fx ± %.3f%s", *told, what)
    return replace(met, measured=measured, rounds=(*met.rounds, entry))


def timed_again(
    met: ClosedLoopResult, dense: PreTrainedModel, how: Measurement
) -> ClosedLoopResult:
    """Time a model whose weights are others now; that alone is its speedup from now on."""
    slow, fast = how.compare(dense, met.pruned, confirm=True)
    again = noted(replace(met, dense_timing=slow, pruned_timing=fast), None, confirms=True)
    if not met_within(again, how):
        log.warning("after recovery it is not within %.0f %%", 100 * how.tolerance)
    return again


def prune_by_table(
    plan: Plan, table: LatencyTable, target: SpeedTarget, clock: Stopwatch
) -> ClosedLoopResult:
    """Prune to a speedup as the table predicts it; nothing is measured.

    ValueError where the plan's own shapes are not in the table.
    """
    hardware, speedup = target.hardware, target.speedup
    shapes = plan.fixed_shapes if speedup is None else plan.choose(table.budget(speedup))
    if shapes is None:
        raise _impossible(plan, table, target)
    if not table.has(shapes):
        raise ValueError(
            f"hardware={hardware.name} cannot tell how fast these shapes are, since its table does "
            "not hold them: give a speedup in the place of the ratio, or hardware=local"
        )
    with clock("prune"):
        model, allocation = plan.build(shapes)
    predicted = predicted_speedup(table, allocation)
    assert predicted is not None
    told = (table.predicts, times(predicted), hardware.name)
    log.info("%s %s, by hardware=%s: nothing is timed", *told)
    timings = Timing([table.dense]), Timing([table.dense / predicted])
    rounds = ({"aim": speedup, "predicted": predicted},)
    return ClosedLoopResult(model, allocation, speedup, predicted, None, *timings, rounds)


def predicted_speedup(table: LatencyTable, allocation: Allocation) -> float | None:
    """Return the speedup that a table predicts, None where it does not hold a shape."""
    left = {site: shape(site, keep) for site, keep in allocation.items()}
    return table.dense / table.total(left) if table.has(left) else None


def _impossible(plan: Plan, table: LatencyTable, target: SpeedTarget) -> ValueError:
    hardware, speedup = target.hardware, target.speedup
    assert speedup is not None, "the shapes of a plan's own are always there"
    return ValueError(
        f"speedup={speedup:g} cannot be met with this search: the most it gives on hardware "
        f"{hardware.name!r} is {_most(plan, table, speedup):.2f}; ask for less, or use "
        "method=ziplm with search=calibrated, which may remove whole sub-blocks"
    )


def _most(plan: Plan, table: LatencyTable, impossible: float) -> float:
    """Return the largest speedup that a plan has an answer for, below an impossible one."""
    possible = 1.0
    while impossible - possible > 0.005:
        middle = (possible + impossible) / 2
        if plan.choose(table.budget(middle)) is None:
            impossible = middle
        else:
            possible = middle
    return possible
