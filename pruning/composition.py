"""From conf/ to an `Experiment`: which dataclass every option of a config group becomes."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from pruning.calibration.calibration import Calibration, Wikipedia
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment, run_name
from pruning.latency.cost_models import File, Proxy, Roofline
from pruning.latency.local import Local
from pruning.methods.baselines import Flap, Magnitude, Random, WandaSp
from pruning.methods.dense import Dense
from pruning.methods.depth import Depth
from pruning.methods.flop.flop import FLOP
from pruning.methods.slimgpt import SlimGPT
from pruning.methods.svd import SVD
from pruning.methods.ziplm import ZipLM
from pruning.models.source import Model
from pruning.recovery.recovery import LocalReconstruction, NoRecovery, Training
from pruning.renamed import today
from pruning.results.tracker import Tracker
from pruning.runtimes.llama_cpp import LlamaCpp
from pruning.runtimes.onnxruntime import OnnxRuntime
from pruning.runtimes.openvino import OpenVINO
from pruning.runtimes.torch_compile import TorchCompile
from pruning.runtimes.torch_eager import TorchEager
from pruning.runtimes.vllm import VLLM
from pruning.search.search import Calibrated, NoSearch, Schedule, Spdy, Uniform
from pruning.system.device_locks import claim_gpu
from pruning.tasks.task import Classification, QuestionAnswering

INSTALLED = Path(__file__).parent / "conf"
CONF = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[1] / "conf"

SCHEMAS: dict[str, dict[str, type]] = {  # by config group, and what its YAMLs begin with
    "model": {"model": Model},
    "method": {
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
    },
    "hardware": {"local": Local, "file": File, "roofline": Roofline, "proxy": Proxy},
    "runtime": {
        "torch": TorchEager,
        "torch_compile": TorchCompile,
        "llama_cpp": LlamaCpp,
        "onnxruntime": OnnxRuntime,
        "openvino": OpenVINO,
        "vllm": VLLM,
    },
    "calibration": {"text": Calibration, "wikipedia": Wikipedia},
    "search": {
        "calibrated": Calibrated,
        "spdy": Spdy,
        "uniform": Uniform,
        "schedule": Schedule,
        "none": NoSearch,
    },
    "suite": {"suite": Suite},
    "recovery": {"none": NoRecovery, "local": LocalReconstruction, "training": Training},
    "tracker": {"tracker": Tracker},
    "task": {"classification": Classification, "answering": QuestionAnswering},
}


class Schemas(ConfigSource):
    """The dataclasses as `/schema/<group>/<name>`, for defaults lists alone: no list has them."""

    @staticmethod
    def scheme() -> str:
        """Return what begins its place in the search path."""
        return "schema"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a dataclass with its defaults."""
        kind = _schema(config_path)
        assert kind is not None
        path = f"{self.scheme()}://{config_path}"
        return ConfigResult(self.provider, path, OmegaConf.structured(kind), {"package": None})

    def available(self) -> bool:
        """Say that it needs nothing."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Say whether some schemas begin so."""
        parts = config_path.strip("/").split("/")
        return parts[0] == "schema" and (not parts[1:] or parts[1] in SCHEMAS)

    def is_config(self, config_path: str) -> bool:
        """Say whether it is the path of one."""
        return _schema(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return nothing: schemas are no options to choose from."""
        return []


class SchemasAreSearched(SearchPathPlugin):
    """Lets Hydra find `Schemas`, whatever other places `hydra.searchpath` names."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add them at the end."""
        search_path.append("pruning", f"{Schemas.scheme()}://")


def _schema(path: str) -> type | None:
    """Return the dataclass of a path below schema/, if it is one."""
    match path.strip("/").removesuffix(".yaml").split("/"):
        case ["schema", "experiment"]:
            return Experiment
        case ["schema", group, name]:
            return SCHEMAS.get(group, {}).get(name)
    return None


def register() -> None:
    """Give Hydra the types of every config group, and the resolvers `run_name` and `card`."""
    for plugin in (Schemas, SchemasAreSearched):
        Plugins.instance().register(plugin)

    def resolve(*, _root_: DictConfig) -> str:
        return run_name(_root_)

    OmegaConf.register_new_resolver("run_name", resolve, replace=True)
    OmegaConf.register_new_resolver("card", claim_gpu, replace=True)


def compose(overrides: list[str]) -> Experiment:
    """Compose conf/ with command-line overrides, without running anything."""
    register()
    refuse_renamed(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_experiment(hydra_compose("config", overrides))


def refuse_renamed(overrides: Iterable[str]) -> None:
    """Raise ValueError for an override, `+` and `~` too, of a field that has another name now.

    Classes from elsewhere, in Hydra's store, may have fields of such names. And for one without a
    name.
    """
    for override in overrides:
        path = override.lstrip("+~").partition("=")[0]
        if not path and "=" in override:
            raise ValueError(f"{override}: a value needs a name in front: write FIELD=VALUE")
        group, _, name = path.partition(".")
        stored = ConfigStore.instance().repo.get(group, {})
        if (now := today(path)) and not any(name in entry.node for entry in stored.values()):
            raise ValueError(f"{override}: this option is now {now}")


def to_experiment(config: DictConfig) -> Experiment:
    """Turn a composed config into the experiment that it describes.

    ValueError names a field that `+field=value` added and that no dataclass has.
    """
    for path, node in _nodes(config):
        kind: Any = OmegaConf.get_type(node)
        known = {field.name for field in fields(kind)}
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
