"""`runtime=torch`: PyTorch as it is, operation by operation."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar

from pruning.runtimes.runtime import Call, Runtime
from pruning.runtimes.workload import Phase, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class TorchEager(Runtime):
    """Modules are called as they are."""

    phases: ClassVar[tuple[Phase, ...]] = tuple(Phase)
    projections: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    name: str = "torch"

    @property
    def version(self) -> str:
        return version("torch")

    def end_to_end(self, model: "PreTrainedModel", work: Workload) -> Call:
        from pruning.runtimes.calls import end_to_end

        return end_to_end(model, work)

    def block(self, model: "PreTrainedModel", work: Workload) -> Callable[..., Call]:
        from pruning.runtimes.calls import of_block

        return of_block(model, work)


EAGER = TorchEager()  # what measures where no other runtime is named
