"""`hardware=local`: this machine, measured."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from pruning.latency.hardware import Working, at_least
from pruning.latency.workload import Phase, Workload
from pruning.results.cache import Cache, digest
from pruning.results.turns import alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.latency.clock import Timing
    from pruning.latency.table import LatencyTable
    from pruning.models.sites import Site

NAMES = {"architectures", "auto_map", "id2label", "label2id", "_name_or_path", "dtype"}


@dataclass
class Local(Working):
    """A device of this machine: parts of a block are profiled, whole models are measured."""

    measures = True
    alignment: int | None = MISSING  # type: ignore[assignment]  # null: found by measuring
    compile: bool = MISSING  # time what torch.compile makes of the models
    repetitions: int = MISSING  # interleaved measurements of everything that is timed
    tolerance: float = MISSING  # accepted distance of measured from target speedup
    rounds: int = MISSING  # measure-and-correct rounds at most
    noise: float | None = MISSING  # refuse a profile that is known less well than this; null: none

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "repetitions", "rounds")
        if isinstance(self.tolerance, float) and not 0 < self.tolerance < 1:
            raise ValueError(f"hardware.tolerance={self.tolerance} must lie between 0 and 1")
        if isinstance(self.noise, float) and not 0 < self.noise < 1:
            raise ValueError(f"hardware.noise={self.noise} must lie between 0 and 1, or be null")
        if self.compile is True and self.phase is Phase.generate:
            raise ValueError(
                "hardware.compile=true does not go with hardware.phase=generate, whose loop is not "
                "compiled: choose prefill or decode"
            )

    def workload(self, model: "PreTrainedModel") -> Workload:
        """Return the work in full, compiled or not; ValueError where it cannot be done."""
        return replace(super().workload(model), compile=self.compile)

    def profile(self, model: "PreTrainedModel", of: "list[Site]", cache: Cache) -> "LatencyTable":
        """Time what the sites have at every level, once per shape and environment."""
        from pruning.latency.profile import profile
        from pruning.latency.table import LatencyTable

        def build(directory: Path) -> None:
            with alone(model.device):
                profile(model, self, of).write(directory / "table.json")

        entry = cache.stage("profile", self._identity(model, of), build)
        return LatencyTable.read(entry / "table.json")

    def compare(
        self, dense: "PreTrainedModel", pruned: "PreTrainedModel", confirm: bool = False
    ) -> "tuple[Timing, Timing]":
        """Time both models end to end, interleaved; longer to confirm what was chosen."""
        from pruning.latency.profile import compare

        with alone(dense.device):
            return compare(dense, pruned, self, confirm)

    def pairs(self, confirm: bool) -> tuple[int, float]:
        """Return the least number of pairs to time, and the standard error at which they do.

        The error is a share of the speedup: half the tolerance, and a quarter of it to confirm.
        """
        if confirm:
            return 2 * self.repetitions, self.tolerance / 4
        return self.repetitions, self.tolerance / 2

    def _identity(self, model: "PreTrainedModel", of: "list[Site]") -> dict:
        """Return what a profile depends on: class, config, shapes, precision, work, machine."""
        from pruning.results.environment import machine

        config = json.loads(model.config.to_json_string(use_diff=False))
        shapes = {name: [*tensor.shape] for name, tensor in model.state_dict().items()}
        return {
            "version": 8,
            "class": type(model).__name__,
            "config": {k: v for k, v in config.items() if v is not None and decides_times(k)},
            "shapes": digest(shapes),
            "sites": [str(site) for site in of],
            "precision": [model.config._attn_implementation, str(model.dtype)],
            "setting": [str(model.device), str(self.workload(model)), self.threads],
            # a table that noise may have spoilt is none for those who would have refused it
            "measurement": [self.repetitions, self.alignment, self.noise is None],
            "environment": machine(),
        }


def decides_times(key: str) -> bool:
    """Say whether an entry of a model's config may change how long the model takes.

    All may but names, paths, token ids and dropout; what the profile's key has elsewhere is left
    out too.
    """
    told = ("_name", "_path", "_token_id", "_version", "dropout", "pdrop", "layerdrop")
    return not key.endswith(told) and key not in NAMES
