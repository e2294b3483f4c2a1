"""The dense model through the same measurements: the anchor of a comparison."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.method import Method, Plan, PruningContext
from pruning.search.search import NoSearch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.models.sites import Site


@dataclass
class Dense(Method):
    """Removes nothing."""

    paper: ClassVar[str] = "https://arxiv.org/abs/1706.03762"
    search_type: ClassVar[type[NoSearch]] = NoSearch
    supports_gradual: ClassVar[bool] = False
    name: str = "dense"
    speedup: float = 1  # what is asked for by default

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("speedup", least=1)

    def sites(self, model: "PreTrainedModel") -> "list[Site]":
        """List what others could remove, if there is anything."""
        from pruning.models.sites import sites

        return sites(model)

    def plan(self, context: PruningContext) -> Plan:
        """Plan to keep everything."""
        from pruning.methods.blocks import Blocks

        return Blocks(context.dense.model, [], context.table)
