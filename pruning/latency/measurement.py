"""How models are timed on hardware that is here, and a comparison of two of them."""

import logging
from dataclasses import dataclass

from transformers import PreTrainedModel

from pruning.latency.clock import Timing, interleaved, speedup
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.workload import Workload
from pruning.system.device_locks import alone

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

    def compare(self, dense: PreTrainedModel, pruned: PreTrainedModel) -> tuple[Timing, Timing]:
        """Time both models end to end in turns until the ratio is known to half the tolerance."""

        def enough(found: dict[str, Timing]) -> bool:
            middle, doubt = speedup(found["dense"], found["pruned"])
            return doubt < self.tolerance / 2 * middle

        with alone(dense.device):
            pair = {"dense": dense, "pruned": pruned}
            calls = {
                name: self.runtime.end_to_end(model, self.work) for name, model in pair.items()
            }
            what = "measure: end to end"
            found = interleaved(calls, dense.device, self.repetitions, what, enough)
        for name, timing in found.items():
            if timing.spread > NOISY:
                log.warning(
                    "end-to-end time of the %s model: p90/p50 is %.2f; other work on this machine "
                    "disturbs the measurement",
                    name,
                    timing.spread,
                )
        return found["dense"], found["pruned"]
