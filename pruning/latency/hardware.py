"""The machine a model is pruned for: the config group `hardware`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from pruning.latency.workload import Phase, Workload
from pruning.results.cache import Cache

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.latency.table import LatencyTable
    from pruning.models.sites import Site


@dataclass
class Hardware(ABC):
    """Where the pruned model is to be fast, and on which device of this machine jobs run."""

    measures: ClassVar[bool] = False  # whether whole models are timed on it, here
    name: str = MISSING
    device: str = MISSING  # auto (CUDA where there is one), cpu, cuda, cuda:1 ...
    threads: int | None = MISSING  # CPU threads; null: one per physical core that torch reports

    def __post_init__(self) -> None:
        at_least(self, "threads")

    def open(self) -> "torch.device":
        """Return the torch device and fix the number of CPU threads."""
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"hardware.device={self.device!r} cannot be used here ({reason}): "
                "choose auto, cpu, or a CUDA device that exists"
            ) from error
        return device

    @abstractmethod
    def profile(self, model: "PreTrainedModel", of: "list[Site]", cache: Cache) -> "LatencyTable":
        """Return what the sites cost at every level, and all that is beside them."""


def at_least(part: Hardware, *fields: str, least: int = 1) -> None:
    """Raise ValueError for numbers of the config that are too small; null passes."""
    for field in fields:
        value = getattr(part, field)
        if isinstance(value, int) and value < least:
            raise ValueError(f"hardware.{field}={value} must be at least {least}")


@dataclass
class Working(Hardware):
    """Hardware whose work is named in the config."""

    phase: Phase = MISSING
    batch: int = MISSING  # sequences at once
    sequence: int = MISSING  # tokens of each prompt or text; in decode those in the KV cache
    tokens: int = MISSING  # generated behind each prompt, in the phase generate
    alignment: int = MISSING  # FFN widths and ranks are multiples of this

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "batch", "sequence", "alignment")
        at_least(self, "tokens", least=2)

    def workload(self, model: "PreTrainedModel") -> Workload:
        """Return the work in full; ValueError where this model does not do such work."""
        from pruning.models.sites import architecture, positions

        encoder, phase = architecture(model).encoder, self.phase
        if phase is Phase.auto:
            phase = Phase.encode if encoder else Phase.prefill
        if encoder != (phase is Phase.encode):
            other = "an encoder, which has encode alone" if encoder else "a decoder: no encode"
            raise ValueError(f"hardware.phase={phase} does not go with {other}; leave it auto")
        work = Workload(phase, self.batch, self.sequence)
        if phase is Phase.generate:
            work = Workload(phase, self.batch, self.sequence, self.tokens)
        read = work.sequence + work.tokens + (phase is Phase.decode)
        longest = positions(model)
        if longest and read > longest:
            raise ValueError(
                f"hardware.sequence={self.sequence} in phase {phase} needs {read} positions, and "
                f"the model has {longest}: lower it"
            )
        return work
