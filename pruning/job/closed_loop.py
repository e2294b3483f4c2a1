"""The closed loop: prune, measure, correct the aim, until the measured speedup is the target."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from transformers import PreTrainedModel

from pruning.latency.clock import Timing
from pruning.latency.clock import speedup as ratio
from pruning.latency.hardware import Hardware
from pruning.latency.measurement import Measurement
from pruning.latency.table import LatencyTable, Shapes
from pruning.methods.method import Plan
from pruning.models.sites import Allocation, shape
from pruning.results.result import times
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.torch_eager import EAGER
from pruning.system.stopwatch import Stopwatch

log = logging.getLogger(__name__)

Make = Callable[[Shapes], tuple[PreTrainedModel, Allocation]]


@dataclass
class Met:
    """The pruned model whose measured speedup came nearest the target."""

    pruned: PreTrainedModel
    allocation: Allocation
    target: float | None
    predicted: float | None  # None where a shape is not in the table
    measured: float | None  # None where the hardware is not here
    dense_timing: Timing
    pruned_timing: Timing
    rounds: list[dict[str, float | None]] = field(default_factory=list)

    @property
    def reached(self) -> float:
        """Return the speedup as it is known best: measured, or else predicted."""
        found = self.predicted if self.measured is None else self.measured
        assert found is not None
        return found


def meet(
    dense: PreTrainedModel,
    plan: Plan,
    table: LatencyTable,
    hardware: Hardware,
    speedup: float | None,
    clock: Stopwatch,
    runtime: Runtime = EAGER,
) -> Met:
    """Prune to `speedup` as measured end to end, within `hardware.tolerance` where it can be had.

    What the table predicts and what is measured differ by a factor that barely depends on the
    allocation; each round divides the target by the median of the factors seen so far. What was
    timed of a model of the same shapes before counts along: shapes alone decide how long it takes.
    Without a speedup the plan's own shapes are built and timed. Where the hardware is not here, the
    table decides alone.
    """
    if (how := hardware.measurement(dense, runtime)) is None:
        return foretold(plan, table, hardware, speedup, clock)
    rounds: list[dict[str, float | None]] = []
    of_shapes: dict[tuple, tuple[Timing, Timing]] = {}

    def timed(make: Make, shapes: Shapes, aim: float | None) -> Met:
        with clock("prune"):
            model, allocation = make(shapes)
        with clock("measure"):
            timings = how.compare(dense, model)
        slow, fast = of_shapes.setdefault(tuple(shapes.items()), (Timing([]), Timing([])))
        slow.values += timings[0].values
        fast.values += timings[1].values
        measured, doubt = ratio(slow, fast)
        predicted = prediction(table, allocation)
        rounds.append({"aim": aim, "predicted": predicted, "measured": measured, "stderr": doubt})
        log.info(
            "aim %s: predicted %s, measured %.3fx ± %.3f",
            times(aim),
            times(predicted),
            measured,
            doubt,
        )
        return Met(model, allocation, speedup, predicted, measured, slow, fast, rounds)

    if speedup is None:
        assert plan.given is not None
        return timed(plan.build, plan.given, None)
    aim, best, settled = speedup, None, None
    factors: list[float] = []
    for _ in range(how.rounds):
        shapes = plan.choose(table.budget(aim))
        if shapes is None:
            log.warning("no allocation is predicted to reach %.2fx: keeping the nearest round", aim)
            break
        met = timed(plan.draft, shapes, aim)
        nearer = best is None or abs(met.reached - speedup) < abs(best.reached - speedup)
        if nearer or shapes == settled:  # the same shapes again: known better now
            best, settled = met, shapes
        if abs(met.reached / speedup - 1) <= how.tolerance or speedup == 1:
            break
        assert met.predicted is not None
        factors.append(met.reached / met.predicted)
        aim = max(1.0, speedup / median(factors))
    if best is None or settled is None:
        raise _impossible(plan, table, hardware, speedup)
    if plan.costly:
        best = timed(plan.build, settled, best.rounds[-1]["aim"])
    if abs(best.reached / speedup - 1) > how.tolerance and speedup > 1:
        log.warning(
            "the nearest measured speedup after %d rounds is %.3fx, not %.3fx within %.0f %%",
            len(rounds),
            best.reached,
            speedup,
            100 * how.tolerance,
        )
    return best


def timed_again(met: Met, dense: PreTrainedModel, how: Measurement) -> None:
    """Time a model whose weights are others now, and note it as a round.

    Its shapes are those of before, so that what was timed then counts along.
    """
    slow, fast = how.compare(dense, met.pruned)
    met.dense_timing.values += slow.values
    met.pruned_timing.values += fast.values
    met.measured, doubt = ratio(met.dense_timing, met.pruned_timing)
    found = {"aim": None, "predicted": met.predicted, "measured": met.measured, "stderr": doubt}
    met.rounds.append(found)
    log.info("measured again after recovery: %.3fx ± %.3f", met.measured, doubt)
    if met.target and abs(met.measured / met.target - 1) > how.tolerance:
        log.warning("after recovery it is not within %.0f %%", 100 * how.tolerance)


def foretold(
    plan: Plan, table: LatencyTable, hardware: Hardware, speedup: float | None, clock: Stopwatch
) -> Met:
    """Prune to `speedup` as the table predicts it; nothing is measured.

    ValueError where the plan's own shapes are not in the table.
    """
    shapes = plan.given if speedup is None else plan.choose(table.budget(speedup))
    if shapes is None:
        assert speedup is not None
        raise _impossible(plan, table, hardware, speedup)
    if not table.knows(shapes):
        raise ValueError(
            f"hardware={hardware.name} cannot tell how fast these shapes are, since its table does "
            "not hold them: give a speedup in the place of the ratio, or hardware=local"
        )
    with clock("prune"):
        model, allocation = plan.build(shapes)
    predicted = prediction(table, allocation)
    assert predicted is not None
    told = (table.foretold, times(predicted), hardware.name)
    log.info("%s %s, not measured: hardware=%s is not here", *told)
    timings = Timing([table.dense]), Timing([table.dense / predicted])
    rounds: list[dict[str, float | None]] = [{"aim": speedup, "predicted": predicted}]
    return Met(model, allocation, speedup, predicted, None, *timings, rounds)


def prediction(table: LatencyTable, allocation: Allocation) -> float | None:
    """Return the speedup that a table predicts, None where it does not hold a shape."""
    left = {site: shape(site, keep) for site, keep in allocation.items()}
    return table.dense / table.total(left) if table.knows(left) else None


def _impossible(plan: Plan, table: LatencyTable, hardware: Hardware, speedup: float) -> ValueError:
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
