"""`runtime=llama_cpp`: llama.cpp on this machine's CPU, from a GGUF file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pruning.runtimes.gguf_precision import Precision
from pruning.runtimes.loaded_models import LoadedModels
from pruning.runtimes.runtime import Call, Runtime, package_version
from pruning.runtimes.workload import Phase, Workload

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from pruning.runtimes.llama_cpp_engine import Loaded

FILE = "model.gguf"
LOADED: "LoadedModels[Loaded]" = LoadedModels()


@dataclass
class LlamaCpp(Runtime):
    """Whole models are timed; a block as a model of some of them, behind a small one."""

    phases: ClassVar[tuple[Phase, ...]] = (Phase.prefill, Phase.decode, Phase.generate)
    exports: ClassVar[bool] = True

    name: str = "llama_cpp"
    precision: Precision = Precision.f16  # of the weights in the file

    @property
    def version(self) -> str:
        """Return the version of llama-cpp-python; ValueError where it is not installed."""
        return package_version("llama-cpp-python", self.name, "llama-cpp")

    def check(self, model: "PreTrainedModel", tokenizer: Any) -> None:
        """Raise ValueError where the engine is not installed, or GGUF cannot hold these two."""
        from pruning.runtimes.gguf_file import check_gguf

        super().check(model, tokenizer)
        check_gguf(model, tokenizer)

    def end_to_end(self, model: "PreTrainedModel", work: Workload) -> Call:
        """Return a call of a whole model."""
        return LOADED.get(model, (self.precision, work), lambda: self._prepared(model, work))

    def copies(self, model: "PreTrainedModel") -> int:
        """Return of how many copies of a block a call of one consists."""
        return 8

    def block(self, model: "PreTrainedModel", work: Workload) -> Callable[..., Call]:
        """Return what makes a call of `copies` of a block, behind a small one of all kinds."""
        from pruning.models.stacked import stacked
        from pruning.runtimes.gguf_blocks import behind_a_small_one

        def call(block: "nn.Module", index: int = 0) -> Call:
            layers = behind_a_small_one(model, block, self.copies(model))
            return self._prepared(stacked(model, layers), work)

        return call

    def served(self, model: "PreTrainedModel", written: Path | None = None) -> Any:
        """Return what answers as the engine does; by what `export` wrote, if that is given."""
        from pruning.runtimes.served import Served

        loaded = self.loaded(model, written)
        return Served(model, lambda ids, _: {"logits": loaded.logits(ids)})

    def _prepared(self, model: "PreTrainedModel", work: Workload) -> "Loaded":
        loaded = self.loaded(model)
        loaded.prepare(work)
        return loaded

    def loaded(self, model: "PreTrainedModel", written: Path | None = None) -> "Loaded":
        """Load a model as it is now, or a file; ValueError where llama.cpp has no such model."""
        assert self.version
        from pruning.runtimes.llama_cpp_engine import Loaded

        return Loaded(model, self.precision, written)

    def export(self, model: "PreTrainedModel", tokenizer: Any, directory: Path) -> str:
        """Write the GGUF file, whole or not at all."""
        from pruning.runtimes.gguf_file import write_gguf

        write_gguf(model, tokenizer, directory / FILE, self.precision)
        return FILE
