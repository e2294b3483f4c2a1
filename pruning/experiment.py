"""The typed configuration: a composed config is an `Experiment`, nothing else."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from pruning.calibration.calibration import Calibration
from pruning.evaluation.suite import Suite
from pruning.latency.elsewhere import File, Proxy, Roofline
from pruning.latency.hardware import Hardware
from pruning.latency.local import Local
from pruning.methods.baselines import Flap, Magnitude, Random, WandaSp
from pruning.methods.dense import Dense
from pruning.methods.depth import Depth
from pruning.methods.flop.flop import FLOP
from pruning.methods.method import Method
from pruning.methods.slimgpt import SlimGPT
from pruning.methods.svd import SVD
from pruning.methods.ziplm import ZipLM
from pruning.models.source import Model
from pruning.recovery.recovery import NoRecovery, Recovery, Training
from pruning.results.result import SCHEMA
from pruning.results.tracker import Tracker
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.torch_compile import TorchCompile
from pruning.runtimes.torch_eager import TorchEager
from pruning.runtimes.workload import Phase
from pruning.search.search import Calibrated, NoSearch, Schedule, Search, Spdy, Uniform
from pruning.system.cache import digest
from pruning.system.device_locks import card
from pruning.tasks.task import Answering, Classification, Task

METHODS = {
    "ziplm": ZipLM,
    "slimgpt": SlimGPT,
    "dense": Dense,
    "random": Random,
    "magnitude": Magnitude,
    "wanda_sp": WandaSp,
    "flap": Flap,
    "depth": Depth,
    "svd": SVD,
    "flop": FLOP,
}
HARDWARE = {"local": Local, "file": File, "roofline": Roofline, "proxy": Proxy}
RUNTIMES = {"torch": TorchEager, "torch_compile": TorchCompile}
SEARCHES = {
    "calibrated": Calibrated,
    "spdy": Spdy,
    "uniform": Uniform,
    "schedule": Schedule,
    "none": NoSearch,
}
RECOVERIES = {"none": NoRecovery, "training": Training}
NOT_THE_RESULT = ("hydra", "tracker", "study", "cache", "verify_cache", "dry_run")
TASKS = {"classification": Classification, "answering": Answering}


@dataclass
class Experiment:
    """One job: prune this model with this method to this speedup on this hardware."""

    model: Model = MISSING
    method: Method = MISSING
    hardware: Hardware = MISSING
    runtime: Runtime = MISSING
    calibration: Calibration = MISSING
    search: Search = MISSING
    suite: Suite = MISSING
    recovery: Recovery = MISSING  # training of the pruned model
    tracker: Tracker = MISSING
    task: Task | None = None  # that an encoder is fine-tuned for
    speedup: float | None = MISSING  # of the dense model's latency, at least 1; null: method.ratio
    seed: int = MISSING
    study: str = MISSING  # jobs that belong together; the directory under outputs/
    cache: str = MISSING  # directory that stages are cached in
    verify_cache: bool = False  # read every cached file that is used, and compare its sha256
    dry_run: bool = MISSING  # say what would be computed, and compute nothing

    def __post_init__(self) -> None:
        if isinstance(self.speedup, float) and not (
            self.speedup >= 1 and math.isfinite(self.speedup)
        ):
            raise ValueError(
                f"speedup={self.speedup} must be a number of at least 1; 1 is the dense model"
            )
        if isinstance(self.method, Method) and not isinstance(self.search, self.method.searches):
            raise ValueError(
                f"search={self.search.name} does not go with method={self.method.name}: leave it "
                "out, and the method's own default is taken"
            )
        if (
            isinstance(self.runtime, Runtime)
            and not self.runtime.generates
            and getattr(self.hardware, "phase", None) is Phase.generate
        ):
            raise ValueError(
                f"runtime={self.runtime.name} does not go with hardware.phase=generate, whose loop "
                "it does not run: choose prefill or decode, or runtime=torch"
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
            and not (self.method.again and self.search.again)
        ):
            raise ValueError(
                f"recovery={self.recovery.name} goes on with what was pruned before, which "
                f"method={self.method.name} with search={self.search.name} cannot: give "
                "recovery.path=[] or another method"
            )
        dial = getattr(self.method, "dial", "")
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

    What does not change the result (NOT_THE_RESULT) is left out of the hash.
    """
    semantic = [str(key) for key in config if key not in NOT_THE_RESULT]
    content = OmegaConf.to_container(
        OmegaConf.masked_copy(config, semantic), resolve=True, throw_on_missing=True
    )
    assert isinstance(content, dict)
    parts = [content[group]["name"] for group in ("model", "method", "hardware")]  # type: ignore[index]
    speedup = content["speedup"]
    option = getattr(OmegaConf.get_type(config.method), "dial", "")  # type: ignore[arg-type]
    dial = str(content["method"].get(option)) if speedup is None else f"{speedup:g}x"
    return "-".join([*parts, dial, digest({"schema": SCHEMA, **content})[:8]])


def to_experiment(config: DictConfig) -> Experiment:
    """Turn a composed config into the experiment that it describes.

    ValueError names a field that `+field=value` added and that no dataclass has.
    """
    for path, node in _nodes(config):
        known = {field.name for field in fields(OmegaConf.get_type(node))}  # type: ignore[arg-type]
        for key in sorted(str(key) for key in node if key not in known):
            raise ValueError(
                f"{path}{key}={node[key]!r} is not an option: choose one of "
                f"{', '.join(sorted(known))}"
            )
    experiment = OmegaConf.to_object(config)
    assert isinstance(experiment, Experiment)
    return experiment


def _nodes(node: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Walk the parts of a config that are dataclasses, each with the path before its keys."""
    kind = OmegaConf.get_type(node)
    if isinstance(kind, type) and is_dataclass(kind):
        yield path, node
    for key in node:
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _nodes(node[key], f"{path}{key}.")


def register() -> None:
    """Give Hydra the types of every config group, and the resolvers `run_name` and `card`."""
    # Hydra copies the store once per group that --help lists, for seconds, and changes no copy
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    store.store(group="schema", name="experiment", node=Experiment)
    store.store(group="schema", name="model", node=Model)
    store.store(group="schema", name="calibration", node=Calibration)
    store.store(group="schema", name="suite", node=Suite)
    store.store(group="schema", name="tracker", node=Tracker)
    for name, node in METHODS.items():
        store.store(group="schema/method", name=name, node=node)
    for name, node in HARDWARE.items():
        store.store(group="schema/hardware", name=name, node=node)
    for name, node in RUNTIMES.items():
        store.store(group="schema/runtime", name=name, node=node)
    for name, node in TASKS.items():
        store.store(group="schema/task", name=name, node=node)
    for name, node in SEARCHES.items():
        store.store(group="schema/search", name=name, node=node)
    for name, node in RECOVERIES.items():
        store.store(group="schema/recovery", name=name, node=node)

    def resolve(*, _root_: DictConfig) -> str:
        return run_name(_root_)

    OmegaConf.register_new_resolver("run_name", resolve, replace=True)
    OmegaConf.register_new_resolver("card", card, replace=True)


def compose(overrides: list[str]) -> Experiment:
    """Compose conf/ with command-line overrides, without running anything: the Python way in."""
    register()
    conf = Path(__file__).parent.parent / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        return to_experiment(hydra_compose("config", overrides))
