"""What executes a model and can be timed: the config group `runtime`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from pruning.runtimes.workload import Phase, Workload
from pruning.system.extras import pip_install
from pruning.system.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Call = Callable[[], object]


@dataclass
class Runtime(Options, ABC):
    """An engine; whatever is timed is a call that it makes."""

    where = "runtime"
    phases: ClassVar[tuple[Phase, ...]]  # that it runs
    exports: ClassVar[bool] = False  # whether it serves a format of its own
    projections: ClassVar[bool] = False  # whether a projection by itself costs what it does inside
    streams: ClassVar[bool] = False  # whether it times models whose weights share memory
    name: str = MISSING  # that results and tables name it by

    @property
    @abstractmethod
    def version(self) -> str:
        """Return the version of the engine, on which times depend."""

    @property
    def choices(self) -> dict[str, Any]:
        """Return its options, on which times depend as on the version."""
        return {key: value for key, value in asdict(self).items() if key != "name"}

    @property
    def label(self) -> str:
        """Return what results call it; times of two labels are not compared.

        PyTorch is its name alone: its version stands with the environment.
        """
        said = [
            key if value is True else str(value) for key, value in self.choices.items() if value
        ]
        return ", ".join([f"{self.name} {self.release}".rstrip(), *said])

    @property
    def native(self) -> bool:
        """Say whether dense models have code that pruned ones cannot use."""
        return False

    @property
    def release(self) -> str:
        """Return the version that results name."""
        return self.version.split("-")[0] if self.exports else ""

    def check(self, model: "PreTrainedModel", tokenizer: Any) -> None:
        """Raise ValueError where the engine is not installed, or has no such model or tokenizer."""
        assert self.version  # or an error that says how to install it

    def served(self, model: "PreTrainedModel", written: Path | None = None) -> Any:
        """Return what answers as the engine does; by what `export` wrote, if that is given."""
        return model

    @abstractmethod
    def end_to_end(self, model: "PreTrainedModel", work: Workload) -> Call:
        """Return a call of a whole model: it ends with logits, of a prompt's last token only."""

    def as_pruned(self, model: "PreTrainedModel", work: Workload) -> Call:
        """Return a call of a whole model by the code that runs pruned ones."""
        return self.end_to_end(model, work)

    def copies(self, model: "PreTrainedModel") -> int:
        """Return of how many copies of a block a call of one consists."""
        return 1

    @abstractmethod
    def block(self, model: "PreTrainedModel", work: Workload) -> Callable[..., Call]:
        """Return what makes a call of a shrunken copy of a block, by its index or the first.

        The call runs `copies` of it. Not for generate.
        """

    def export(self, model: "PreTrainedModel", tokenizer: Any, directory: Path) -> str:
        """Write what the engine serves into a job's directory; return the name of it there."""
        raise NotImplementedError(f"{self.name} serves the checkpoint as it is")


def package_version(package: str, runtime: str, extra: str) -> str:
    """Return the version of an engine; ValueError where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise ValueError(
            f"runtime={runtime} needs the package {package}, which is not installed: "
            + pip_install(extra)
        ) from error
