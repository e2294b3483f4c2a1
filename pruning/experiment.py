"""The typed configuration: a composed config is an `Experiment`, nothing else."""

import math
from dataclasses import dataclass, field

from omegaconf import MISSING, DictConfig, OmegaConf

from pruning.calibration.calibration import Calibration
from pruning.evaluation.suite import Suite
from pruning.latency.hardware import Hardware
from pruning.methods.method import Method
from pruning.models.source import Model
from pruning.recovery.recovery import Recovery
from pruning.results.result import SCHEMA
from pruning.results.tracker import Tracker
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.workload import Phase
from pruning.search.search import Search
from pruning.system.cache import digest, root
from pruning.system.options import Options
from pruning.tasks.task import Task

NOT_THE_RESULT = ("hydra", "tracker", "study", "cache", "verify_cache", "dry_run")
BESIDE_THE_RESULT = {  # by group: what only the model card says, and what is of this machine
    "model": ("base_model", "license", "resident"),
    "calibration": ("dataset", "launcher", "stored"),
    "runtime": ("python",),
}


@dataclass
class Experiment(Options):
    """One job: prune this model with this method to this speedup on this hardware."""

    model: Model = MISSING  # what is pruned
    method: Method = MISSING  # what makes it smaller
    hardware: Hardware = MISSING  # what it is to be fast on
    runtime: Runtime = MISSING  # what executes the models that are timed
    calibration: Calibration = MISSING  # the text that the method looks at
    search: Search = MISSING  # what decides how much of every site goes
    suite: Suite = MISSING  # what both models are evaluated on
    recovery: Recovery = MISSING  # training of the pruned model
    tracker: Tracker = MISSING  # where results are shown
    task: Task | None = None  # that an encoder is fine-tuned for
    speedup: float | None = MISSING  # dense / pruned ms, at least 1; null: method.ratio, .sparsity
    seed: int = 0  # order of the calibration text, everything random
    study: str = "default"  # jobs that belong together: outputs/<study>/, one W&B group
    cache: str = field(default_factory=root)  # finished stages, shared by all jobs
    verify_cache: bool = False  # read every cached file that is used, and compare its sha256
    dry_run: bool = False  # say what would be computed, and compute nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("seed", least=0)
        if isinstance(self.speedup, float) and not (
            self.speedup >= 1 and math.isfinite(self.speedup)
        ):
            raise ValueError(
                f"speedup={self.speedup} must be a number of at least 1; 1 is the dense model"
            )
        if isinstance(self.method, Method) and not isinstance(self.search, self.method.search_type):
            raise ValueError(
                f"search={self.search.name} does not go with method={self.method.name}: leave it "
                "out, and the method's own default is taken"
            )
        phase = getattr(self.hardware, "phase", Phase.auto)
        if (
            isinstance(self.runtime, Runtime)
            and phase is not Phase.auto
            and phase not in self.runtime.phases
        ):
            raise ValueError(
                f"runtime={self.runtime.name} does not go with hardware.phase={phase}: it runs "
                f"{', '.join(self.runtime.phases)}; choose one of these, or runtime=torch"
            )
        if (
            self.task is None
            and isinstance(self.calibration, Calibration)
            and self.calibration.text is None
        ):
            raise ValueError(
                f"calibration={self.calibration.name} takes the rows of a task, and there is none: "
                "give one, such as task=sst2, or another calibration"
            )
        if (
            isinstance(self.recovery, Recovery)
            and self.recovery.before(self.speedup) is not None
            and not (self.method.supports_gradual and self.search.supports_gradual)
        ):
            raise ValueError(
                f"recovery={self.recovery.name} goes on with what was pruned before, which "
                f"method={self.method.name} with search={self.search.name} cannot: give "
                "recovery.path=[] or another method"
            )
        dial = getattr(self.method, "ratio_option", "")
        ratio = getattr(self.method, dial) if dial else None
        if self.speedup is None and ratio is None:
            raise ValueError(
                "speedup=null needs a ratio in its place: give a speedup, or method=slimgpt with "
                "method.ratio, or method=flop with method.sparsity"
            )
        if self.speedup is not None and ratio is not None:
            raise ValueError(
                f"method.{dial}={ratio} and speedup={self.speedup:g} exclude each other: leave out "
                f"the {dial}, or give speedup=null"
            )


def run_name(config: DictConfig) -> str:
    """Name a job by what it is: the same resolved config has the same name, on every machine.

    What does not change the result (NOT_THE_RESULT and BESIDE_THE_RESULT) is left out of the hash.
    """
    semantic = [str(key) for key in config if key not in NOT_THE_RESULT]
    content = OmegaConf.to_container(
        OmegaConf.masked_copy(config, semantic), resolve=True, throw_on_missing=True
    )
    assert isinstance(content, dict)
    for group, names in BESIDE_THE_RESULT.items():
        for name in names:
            content[group].pop(name, None)  # type: ignore[index]
    parts = [content[group]["name"] for group in ("model", "method", "hardware")]  # type: ignore[index]
    speedup = content["speedup"]
    option = getattr(OmegaConf.get_type(config.method), "ratio_option", "")  # type: ignore[arg-type]
    dial = str(content["method"].get(option)) if speedup is None else f"{speedup:g}x"
    return "-".join([*parts, dial, digest({"schema": SCHEMA, **content})[:8]])
