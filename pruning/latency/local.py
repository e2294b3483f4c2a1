"""`hardware=local`: this machine, measured."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.latency.hardware import Working
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.torch_eager import EAGER
from pruning.system.cache import Cache, digest
from pruning.system.device_locks import exclusive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.latency.measurement import Measurement
    from pruning.latency.table import LatencyTable
    from pruning.models.sites import Site

NAMES = {
    "architectures",
    "auto_map",
    "id2label",
    "label2id",
    "problem_type",  # which training sets
    "_name_or_path",
    "dtype",
}


@dataclass
class Local(Working):
    """A device of this machine: parts of a block are profiled, whole models are measured."""

    name: str = "local"
    # FFN widths and ranks are multiples of this, less those slower than a wider one; null: measured
    alignment: int | None = 32  # type: ignore[assignment]
    repetitions: int = 12  # interleaved measurements of each level and each model, at least
    tolerance: float = 0.02  # measured speedup may be off the target by this share
    rounds: int = 4  # prune, measure, correct: at most so often
    # refuse a profile of which a level is known less well, as a share of its part; null: never
    noise: float | None = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("repetitions", "rounds", least=1)
        self.check_range("tolerance", "noise", above=0, below=1)

    def profile(
        self, model: "PreTrainedModel", sites: "list[Site]", cache: Cache, runtime: Runtime = EAGER
    ) -> "LatencyTable":
        """Time what the sites have at every level, once per shape and environment."""
        from pruning.latency.profile import profile
        from pruning.latency.table import LatencyTable
        from pruning.models.stand_in import timed

        how = self.measurement(model, runtime)

        def build(directory: Path) -> None:
            with exclusive(model.device):
                profile(timed(model), how, sites).write(directory / "table.json")

        entry = cache.stage("profile", self._identity(model, sites, how), build)
        return LatencyTable.read(entry / "table.json")

    def measurement(self, model: "PreTrainedModel", runtime: Runtime = EAGER) -> "Measurement":
        """Return how models are timed on it; ValueError where it cannot do the work."""
        from pruning.latency.measurement import Measurement

        work = self.workload(model)
        repeats = self.repetitions, self.alignment, self.noise, self.tolerance, self.rounds
        return Measurement(runtime, work, *repeats)

    def slowdown(
        self,
        whole: "PreTrainedModel",
        fewer: "PreTrainedModel",
        cache: Cache,
        runtime: Runtime = EAGER,
    ) -> float:
        """Time a model beside that of fewer tokens, once per shape and environment."""
        from pruning.latency.timer import speedup

        how = self.measurement(whole, runtime)

        def build(directory: Path) -> None:
            ratio, _ = speedup(*how.compare(whole, fewer))
            (directory / "slowdown.json").write_text(json.dumps(ratio))

        both = [self._identity(model, [], how) for model in (whole, fewer)]
        entry = cache.stage("vocabulary", {"version": 1, "models": both}, build)
        return json.loads((entry / "slowdown.json").read_text())

    def _identity(
        self, model: "PreTrainedModel", sites: "list[Site]", how: "Measurement"
    ) -> dict[str, Any]:
        """Return what a profile depends on: class, config, shapes, precision, work, machine."""
        from pruning.latency.profile import in_a_row
        from pruning.models.streamed import is_streamed
        from pruning.system.environment import machine

        runtime, device = how.runtime, model.device
        counts = in_a_row(device), runtime.copies(model)
        times = [*counts] if max(counts) > 1 else []
        # eager PyTorch is told by the environment alone
        options = runtime.choices.values()
        engine = [] if runtime == EAGER else [runtime.name, runtime.version, *options]
        stands_in = {"stands_in": True} if is_streamed(model) else {}
        config = json.loads(model.config.to_json_string(use_diff=False))
        shapes = {name: [*tensor.shape] for name, tensor in model.state_dict().items()}
        return {
            "version": 9,
            "class": type(model).__name__,
            "config": {k: v for k, v in config.items() if v is not None and decides_times(k)},
            "shapes": digest(shapes),
            "sites": [str(site) for site in sites],
            "precision": [model.config._attn_implementation, str(model.dtype)],
            "setting": [str(device), str(how.work), self.threads, *engine],
            # a table that noise may have spoilt is none for those who would have refused it
            "measurement": [self.repetitions, self.alignment, self.noise is None, *times],
            "environment": machine(),
            **stands_in,
        }


def decides_times(key: str) -> bool:
    """Say whether an entry of a model's config may change how long the model takes.

    All may but names, paths, token ids and dropout; what the profile's key has elsewhere is left
    out too.
    """
    told = ("_name", "_path", "_token_id", "_version", "dropout", "pdrop", "layerdrop")
    return not key.endswith(told) and key not in NAMES
