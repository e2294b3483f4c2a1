"""`runtime=torch_compile`: what torch.compile makes of the models, for the shapes of the work."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from types import FunctionType
from typing import TYPE_CHECKING, ClassVar

from pruning.runtimes.runtime import Call, Runtime
from pruning.runtimes.workload import Phase, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class TorchCompile(Runtime):
    """Whole models and single blocks, each in one graph; a minute or so per model."""

    # not generate, whose loop is not compiled
    phases: ClassVar[tuple[Phase, ...]] = (Phase.prefill, Phase.decode, Phase.encode)
    streams: ClassVar[bool] = True

    name: str = "torch_compile"

    @property
    def version(self) -> str:
        return version("torch")

    def end_to_end(self, model: "PreTrainedModel", work: Workload) -> Call:
        from pruning.runtimes.calls import end_to_end

        return end_to_end(model, work, compiled)

    def block(self, model: "PreTrainedModel", work: Workload) -> Callable[..., Call]:
        from pruning.runtimes.calls import of_block

        return of_block(model, work, compiled)


def compiled(call: FunctionType) -> Call:
    """Return a call compiled for its own shapes; a ValueError if that fails.

    torch keeps what it compiled with the code of a function, tries all of it at every call, and
    gives up after a few shapes; so each call has a copy of the code, and all is in one graph.
    """
    import torch
    from torch._dynamo.exc import TorchDynamoException

    own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    fast = torch.compile(own, dynamic=False, fullgraph=True)

    def run() -> object:
        try:
            return fast()
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"runtime=torch_compile: torch cannot compile this model here ({reason}): it needs "
                "a C++ compiler, on CUDA triton; or give runtime=torch"
            ) from error

    return run
