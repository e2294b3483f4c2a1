"""The machine a model is pruned for: the config group `hardware`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from pruning.runtimes.runtime import Runtime
from pruning.runtimes.torch_eager import EAGER
from pruning.runtimes.workload import Phase, Workload
from pruning.system.cache import Cache
from pruning.system.options import Options

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.latency.measurement import Measurement
    from pruning.latency.table import LatencyTable
    from pruning.models.sites import Site


@dataclass
class Hardware(Options, ABC):
    """Where the pruned model is to be fast, and on which device of this machine jobs run."""

    where = "hardware"
    name: str = MISSING  # that jobs and tables are named by
    device: str = "auto"  # where jobs run: auto (CUDA where there is one), cpu, cuda, cuda:1 ...
    threads: int | None = None  # CPU threads; null: what torch takes

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("threads", least=1)

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
    def profile(
        self, model: "PreTrainedModel", sites: "list[Site]", cache: Cache, runtime: Runtime = EAGER
    ) -> "LatencyTable":
        """Return what the sites cost at every level, and all that is beside them."""

    def measurement(
        self, model: "PreTrainedModel", runtime: Runtime = EAGER
    ) -> "Measurement | None":
        """Return how models are timed on it in a runtime; None where it is not here."""
        return None

    def slowdown(
        self,
        whole: "PreTrainedModel",
        fewer: "PreTrainedModel",
        cache: Cache,
        runtime: Runtime = EAGER,
    ) -> float | None:
        """Return how many times as long a model takes as with fewer tokens; None if not here."""
        return None


@dataclass
class Working(Hardware):
    """Hardware whose work is named in the config."""

    phase: Phase = Phase.auto  # auto: encode for encoders, else prefill
    batch: int = 1  # sequences at once
    sequence_length: int = 256  # tokens of each prompt or text; in decode those in the KV cache
    max_new_tokens: int = 64  # generated behind each prompt, in the phase generate
    alignment: int = 32  # FFN widths and ranks are multiples of this

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("batch", "sequence_length", "alignment", least=1)
        self.check_range("max_new_tokens", least=2)

    def workload(self, model: "PreTrainedModel") -> Workload:
        """Return the work in full; ValueError where this model does not do such work."""
        from pruning.models.sites import architecture, positions

        encoder, phase = architecture(model).encoder, self.phase
        if phase is Phase.auto:
            phase = Phase.encode if encoder else Phase.prefill
        if encoder != (phase is Phase.encode):
            other = "an encoder, which has encode alone" if encoder else "a decoder: no encode"
            raise ValueError(f"hardware.phase={phase} does not go with {other}; leave it auto")
        work = Workload(phase, self.batch, self.sequence_length)
        if phase is Phase.generate:
            work = Workload(phase, self.batch, self.sequence_length, self.max_new_tokens)
        read = work.sequence + work.tokens + (phase is Phase.decode)
        longest = positions(model)
        if longest and read > longest:
            raise ValueError(
                f"hardware.sequence_length={self.sequence_length} in phase {phase} needs {read} "
                f"positions, and the model has {longest}: lower it"
            )
        return work
