"""What a pruning method is: the config group `method`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from pruning.search.search import Search
from pruning.system.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.calibration.calibration import Calibration, CalibrationData
    from pruning.latency.table import LatencyTable, Shapes
    from pruning.models.loaded import LoadedModel
    from pruning.models.sites import Allocation, Site
    from pruning.system.job import Job


@dataclass
class PruningContext:
    """A dense model, and all that a method may use to decide what to remove from it."""

    dense: "LoadedModel"
    calibration: "CalibrationData"
    table: "LatencyTable"
    search: Search
    speedup: float | None  # None: the method has a ratio
    job: "Job"


class Plan(ABC):
    """What a method would do at any latency; made once per job."""

    expensive = False  # to build: then drafts are timed while shapes are sought
    fixed_shapes: "Shapes | None" = None  # settled by the method itself, for jobs without a speedup
    history: "Sequence[dict[str, float]]" = ()  # curves of what was trained, by logged step
    search_history: "Sequence[dict[str, float]]" = ()  # losses of the candidates that were measured
    # how weights were solved behind pruned blocks, by site, when it was built
    updates: "Sequence[dict[str, Any]]" = ()

    @abstractmethod
    def choose(self, budget: float) -> "Shapes | None":
        """Return what is left of every site within `budget` ms end to end, None if nothing fits."""

    @abstractmethod
    def build(self, shapes: "Shapes") -> "tuple[PreTrainedModel, Allocation]":
        """Return a shrunken model of these shapes, and what it kept.

        Where nothing is removed, parameters are shared with the dense model.
        """

    def timing_model(self, shapes: "Shapes") -> "tuple[PreTrainedModel, Allocation]":
        """Return a model of these shapes to time; its weights may be any."""
        return self.build(shapes)

    def is_draft(self, shapes: "Shapes") -> bool:
        """Tell whether the model to time has other weights than the one that is built."""
        return self.expensive


def default_ridges() -> list[float]:
    """Return candidates for the ridge of a weight update; infinite: no update."""
    return [0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, math.inf]


def check_ridges(damp: float, ridges: list[float]) -> None:
    """Raise ValueError where the ridge of a score, or a candidate for the update's, cannot be."""
    if isinstance(damp, float) and damp < 0:
        raise ValueError(f"method.damp={damp} must be at least 0")
    if isinstance(ridges, list) and (not ridges or sorted(ridges) != ridges or ridges[0] < 0):
        raise ValueError(f"method.ridges={ridges} must be ascending and not negative")


@dataclass
class Method(Options, ABC):
    """A way to make a smaller model of a dense one."""

    where = "method"
    paper: ClassVar[str]  # URL
    search_type: ClassVar[type[Search]]  # what it lets decide how much of every site goes
    ratio_option: ClassVar[str] = ""  # the option that may take the place of a speedup
    supports_gradual: ClassVar[bool] = True  # whether it can go on with a model that it has pruned
    streams: ClassVar[bool] = True  # whether one block in memory at a time is enough for it
    name: str = MISSING  # that its jobs are named by

    def sites(self, model: "PreTrainedModel") -> "list[Site]":
        """List where it removes something; latency is profiled there.

        ValueError where there is nothing.
        """
        from pruning.models.sites import sites

        prunable = sites(model)
        if not prunable:
            raise ValueError(
                f"method={self.name} finds nothing to cut: what is left of the blocks of this "
                "model is products of two projections; evaluate it with method=dense, or prune "
                "the dense model"
            )
        return prunable

    def cost(
        self, model: "PreTrainedModel", tokens: int, calibration: "Calibration", search: Search
    ) -> dict[str, float | None]:
        """Return how many tokens each stage brings through the whole model, None if not known.

        The stages of a plan stand in its order and are named as in the cache; `prune` is what
        building costs. `tokens` is the length of the calibration text.
        """
        return {"prune": 0.0}

    @abstractmethod
    def plan(self, context: PruningContext) -> Plan:
        """Do the work that does not depend on the latency."""
