"""How models are timed on hardware that is here, and a comparison of two of them."""

import logging
from dataclasses import dataclass

from transformers import PreTrainedModel

from pruning.latency.timer import Timing, in_turns
from pruning.models.stand_in import timed
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.workload import Workload
from pruning.system.device_locks import exclusive

log = logging.getLogger(__name__)

NOISY = 1.2  # p90/p50 beyond which a timing deserves a warning


@dataclass(frozen=True)
class Measurement:
    """What executes a model, at what work, and how well its time is to be known."""

    runtime: Runtime
    work: Workload
    repetitions: int  # interleaved measurements of everything that is timed
    alignment: int | None  # FFN widths and ranks are multiples of this; None: found by measuring
    noise: float | None  # refuse a profile that is known less well than this; None: never
    tolerance: float  # accepted distance of measured from target speedup
    rounds: int  # measure-and-correct rounds at most

    def pairs(self, confirm: bool) -> tuple[int, float]:
        """Return the least number of pairs to time, and the standard error at which they do.

        The error is a share of the speedup: half the tolerance, and a quarter of it to confirm.
        """
        if confirm:
            return 2 * self.repetitions, self.tolerance / 4
        return self.repetitions, self.tolerance / 2

    def compare(
        self, dense: PreTrainedModel, pruned: PreTrainedModel, confirm: bool = False
    ) -> tuple[Timing, Timing]:
        """Time both models end to end in turns, as often as `pairs` asks for."""
        with exclusive(dense.device):
            call = self.runtime.end_to_end
            calls = call(timed(dense), self.work), call(timed(pruned), self.work)
            timings = in_turns(calls, dense.device, *self.pairs(confirm), "measure: end to end")
        for name, timing in zip(("dense", "pruned"), timings, strict=True):
            if timing.spread > NOISY:
                log.warning(
                    "end-to-end time of the %s model: p90/p50 is %.2f; other work on this machine "
                    "disturbs the measurement",
                    name,
                    timing.spread,
                )
        return timings
