"""A model as it was loaded, with its tokenizer."""

from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.models.source import fingerprint


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its tokenizer; its weights stay as they are, so they are hashed once."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    whole: "LoadedModel | None" = None  # as it was before its vocabulary was trimmed

    @property
    def reference(self) -> "LoadedModel":
        """Return the model that speed and quality are compared with."""
        return self.whole or self

    @cached_property
    def fingerprint(self) -> str:
        """Return what stands for the model in the keys of cached stages."""
        return fingerprint(self.model)
