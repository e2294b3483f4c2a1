"""`runtime=vllm`: vLLM, from the checkpoint as it is, in an environment of its own."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from pruning.runtimes.loaded_models import LoadedModels
from pruning.runtimes.runtime import Call, Runtime
from pruning.runtimes.vllm_plugin import FAMILIES as PLUGGED
from pruning.runtimes.workload import Phase, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.runtimes.vllm_engine import Loaded

# not gpt2: its code in transformers takes attention in another shape than vLLM gives it
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "opt")
HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # sizes that its CPU attention takes
LOADED: "LoadedModels[Loaded]" = LoadedModels()


class Precision(StrEnum):
    """What a model is computed in."""

    auto = "auto"  # what vLLM chooses: on a CPU, bfloat16 for a checkpoint in float32
    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass
class VLLM(Runtime):
    """Whole models are timed, in the engine's own scheduler; a block as a model of some of them.

    A dense model runs by vLLM's own code, a pruned one by its transformers backend; by the plugin
    both run by vLLM's own.
    """

    phases: ClassVar[tuple[Phase, ...]] = (Phase.prefill, Phase.decode, Phase.generate)

    name: str = "vllm"
    precision: Precision = Precision.auto  # of the weights and of the arithmetic
    enforce_eager: bool = True  # false: compiled, which takes a minute or more per model
    plugin: bool = False  # true: pruned models by vLLM's own code, which our plugin gives shapes
    python: str | None = None  # interpreter of the environment that vLLM is in; null: this one

    @property
    def interpreter(self) -> str:
        """Return what runs vLLM."""
        return self.python or sys.executable

    @property
    def version(self) -> str:
        """Return the version of vLLM in its environment, and how often models are loaded.

        ValueError where it is not installed.
        """
        from pruning.runtimes.vllm_engine import LOADS, LOADS_OF_COPIES, installed

        return f"{installed(self.interpreter)}-{LOADS}-{LOADS_OF_COPIES}-loads"

    @property
    def native(self) -> bool:
        """Say whether dense models have code that pruned ones cannot use."""
        return not self.plugin

    @property
    def release(self) -> str:
        """Return the version that results name."""
        return self.version.split("-")[0]

    @property
    def choices(self) -> dict[str, Any]:
        """Return its options, on which times depend as on the version."""
        return {key: value for key, value in super().choices.items() if key != "python"}

    def check(self, model: "PreTrainedModel", tokenizer: Any) -> None:
        """Raise ValueError where the engine is not installed, or does not take the model."""
        from pruning.models.checkpoint import clusters, size_of_head
        from pruning.models.modeling_pruned import ranks
        from pruning.models.sites import blocks
        from pruning.runtimes.vllm_engine import check_import

        super().check(model, tokenizer)
        family, size = model.config.model_type, size_of_head(model.config)
        if family not in FAMILIES:
            raise ValueError(
                f"runtime=vllm: pruned models of the family {family} are not served: give a model "
                f"of {', '.join(FAMILIES)}, or another runtime"
            )
        if self.plugin and family not in PLUGGED:
            raise ValueError(
                f"runtime.plugin=true: the plugin does not serve the family {family}: give a model "
                f"of {', '.join(PLUGGED)}, or runtime.plugin=false"
            )
        if size not in HEADS:
            raise ValueError(
                f"runtime=vllm: its attention on CPUs takes no heads of {size} columns: give a "
                "model with heads of 64 or 128, or another runtime"
            )
        if clusters(model) or any(map(ranks, blocks(model))):
            raise ValueError(
                "runtime=vllm: projections and embeddings that are products are not served: give "
                "a model that has none, or another runtime"
            )
        check_import(self.interpreter)

    def end_to_end(self, model: "PreTrainedModel", work: Workload) -> Call:
        """Return a call of a whole model, as vLLM serves its checkpoint."""
        return self._loaded(model, work, "auto")

    def as_pruned(self, model: "PreTrainedModel", work: Workload) -> Call:
        """Return a call of a whole model by the code that serves pruned ones."""
        return self._loaded(model, work, "transformers")

    def copies(self, model: "PreTrainedModel") -> int:
        """Return as many copies as the model has blocks, or fewer where these are large.

        A few small ones would stay in the processor's caches, which a whole model does not.
        """
        from pruning.models.sites import blocks
        from pruning.runtimes.vllm_engine import BYTES, size

        layers = blocks(model)
        return min(len(layers), max(2, BYTES // size(layers[0])))

    def block(self, model: "PreTrainedModel", work: Workload) -> Callable[..., Call]:
        """Return what makes a call of `copies` of a block, one behind the other."""
        from pruning.models.stacked import repeated
        from pruning.runtimes.vllm_engine import LOADS_OF_COPIES

        copies = self.copies(model)
        return lambda block, index=0: self._load(
            repeated(model, block, copies), work, "transformers", LOADS_OF_COPIES
        )

    def _loaded(self, model: "PreTrainedModel", work: Workload, code: str) -> "Loaded":
        from pruning.runtimes.vllm_engine import LOADS

        key = (repr(self), work, code)
        return LOADED.get(model, key, lambda: self._load(model, work, code, LOADS))

    def _load(self, model: "PreTrainedModel", work: Workload, code: str, loads: int) -> "Loaded":
        from pruning.runtimes.vllm_engine import Loaded

        assert self.version
        options = {"dtype": str(self.precision), "enforce_eager": self.enforce_eager}
        options["model_impl"] = "plugin" if self.plugin else code
        return Loaded(model, self.interpreter, work, options, loads)
