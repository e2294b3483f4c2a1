"""What engines have loaded of models, kept while these live."""

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loaded = TypeVar("Loaded")


class LoadedModels(Generic[Loaded]):
    """By model, its shapes and a key: it is loaded again where its blocks have other shapes."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[PreTrainedModel, dict[Any, Loaded]] = WeakKeyDictionary()

    def get(
        self, model: "PreTrainedModel", key: Hashable, load: "Callable[[], Loaded]"
    ) -> "Loaded":
        """Return what `load` returned for these, calling it the first time."""
        from pruning.models.modeling_pruned import block_shape
        from pruning.models.sites import architecture, blocks

        shapes = tuple(block_shape(block, architecture(model)) for block in blocks(model))
        known = self._known.setdefault(model, {})
        if (key, shapes) not in known:
            known[key, shapes] = load()
        return known[key, shapes]
