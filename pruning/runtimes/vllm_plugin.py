"""A plugin of vLLM's own (`vllm.general_plugins`): its own code serves pruned checkpoints.

Every process of vLLM imports it, so it imports nothing, of this package neither.
"""

from importlib import import_module
from typing import Any

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
LAZY = "pruning.runtimes.vllm_pruned:PrunedForCausalLM"


def architecture(name: str) -> str:
    """Name what serves a checkpoint, dense or pruned, by its architecture."""
    return f"Pruned{name.removeprefix('Pruned')}"


def register(kind: Any = LAZY) -> None:
    """Have vLLM build this class, or the one of this name, for pruned checkpoints."""
    registry = import_module("vllm").ModelRegistry
    for name in FAMILIES.values():
        registry.register_model(architecture(f"{name}ForCausalLM"), kind)
