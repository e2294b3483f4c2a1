"""What executes a model and can be timed: the config group `runtime`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from pruning.runtimes.workload import Workload
from pruning.system.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Call = Callable[[], object]


@dataclass
class Runtime(Options, ABC):
    """An engine; whatever is timed is a call that it makes."""

    where = "runtime"
    generates: ClassVar[bool] = True  # whether it runs the loop of the phase generate
    projections: ClassVar[bool] = False  # whether a projection by itself costs what it does inside
    name: str = MISSING  # that results and tables name it by

    @property
    @abstractmethod
    def version(self) -> str:
        """Return the version of the engine, on which times depend."""

    @abstractmethod
    def end_to_end(self, model: "PreTrainedModel", work: Workload) -> Call:
        """Return a call of a whole model: it ends with logits, of a prompt's last token only."""

    @abstractmethod
    def block(self, model: "PreTrainedModel", work: Workload) -> Callable[..., Call]:
        """Return what makes a call of a shrunken copy of a block, by its index or the first.

        Not for generate.
        """
