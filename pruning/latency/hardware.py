"""The machine a model is pruned for, and how time is measured on it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from pruning.results.cache import Cache

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.latency.clock import Timing
    from pruning.latency.table import LatencyTable
    from pruning.models.sites import Site


@dataclass
class Hardware:
    """Prefill of `batch` x `sequence` tokens on a device of this machine."""

    name: str = MISSING
    device: str = MISSING  # auto (CUDA where there is one), cpu, cuda, cuda:1 ...
    batch: int = MISSING
    sequence: int = MISSING
    threads: int | None = MISSING  # CPU threads; null: one per physical core that torch reports
    repetitions: int = MISSING  # interleaved measurements of everything that is timed
    alignment: int = MISSING  # FFN widths are multiples of this
    tolerance: float = MISSING  # accepted distance of measured from target speedup
    rounds: int = MISSING  # measure-and-correct rounds at most

    def __post_init__(self) -> None:
        for field in ("batch", "sequence", "repetitions", "alignment", "rounds"):
            value = getattr(self, field)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"hardware.{field}={value} must be at least 1")
        if isinstance(self.threads, int) and self.threads < 1:
            raise ValueError(f"hardware.threads={self.threads} must be at least 1, or null")
        if isinstance(self.tolerance, float) and not 0 < self.tolerance < 1:
            raise ValueError(f"hardware.tolerance={self.tolerance} must lie between 0 and 1")

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

    def profile(self, model: "PreTrainedModel", of: "list[Site]", cache: Cache) -> "LatencyTable":
        """Time what the sites of each block have at every level, once per shape and environment."""
        from pruning.latency.profile import profile
        from pruning.latency.table import LatencyTable

        first = [site for site in of if site.block == of[0].block]
        entry = cache.stage(
            "profile",
            self._identity(model, first),
            lambda path: profile(model, self, first).write(path / "table.json"),
        )
        return LatencyTable.read(entry / "table.json")

    def compare(
        self, dense: "PreTrainedModel", pruned: "PreTrainedModel"
    ) -> "tuple[Timing, Timing]":
        """Time both models end to end, interleaved."""
        from pruning.latency.profile import compare

        return compare(dense, pruned, self)

    def _identity(self, model: "PreTrainedModel", of: "list[Site]") -> dict:
        """Return what a profile depends on: shapes, precision, setting, environment."""
        from pruning.models.sites import blocks
        from pruning.results.environment import environment

        config = model.config
        return {
            "version": 3,
            "shape": [config.model_type, config.hidden_size, len(blocks(model))]
            + [str(site) for site in of]
            + [config.vocab_size, config._attn_implementation, str(model.dtype)],
            "setting": [str(model.device), self.batch, self.sequence, self.threads],
            "measurement": [self.repetitions, self.alignment],
            "environment": {
                k: v for k, v in environment().items() if k not in {"git", "commit", "dirty"}
            },
        }
