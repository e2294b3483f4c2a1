"""A model as it was loaded, and what is asked of it again and again."""

from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.models.modeling_pruned import Architecture
from pruning.models.sites import Site, architecture, blocks, sites
from pruning.models.source import fingerprint


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its tokenizer; its weights stay as they are: all else is looked up once."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def fingerprint(self) -> str:
        """Return what stands for the model in the keys of cached stages."""
        return fingerprint(self.model)

    @cached_property
    def architecture(self) -> Architecture:
        """Return the names of its modules."""
        return architecture(self.model)

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """Return its transformer blocks."""
        return blocks(self.model)

    @cached_property
    def sites(self) -> list[Site]:
        """List its sub-blocks."""
        return sites(self.model)
