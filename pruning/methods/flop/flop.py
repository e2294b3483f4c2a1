"""FLOP: low-rank factors whose ranks are learned by gates (arXiv:1910.04732)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.flop.recipe import Embedding, Recipe
from pruning.methods.leveled import cost_of_levels
from pruning.methods.method import Method, Plan, PruningContext
from pruning.search.search import Guided, Search

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.calibration.calibration import Calibration
    from pruning.models.sites import Site


@dataclass
class FLOP(Recipe, Method):
    """Every projection is a product B G A with gates G; weights and gates are trained together.

    The loss is that of the next token, or for an encoder that of its task.

    An augmented Lagrangian holds the expected cost to the target: milliseconds of the latency table
    where there is a speedup, else parameters. It starts from what `method=svd` would do: from its
    factors, with gates that are open up to the ranks that the search chooses.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1910.04732"
    search_type: ClassVar[type[Guided]] = Guided
    supports_gradual: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    ratio_option: ClassVar[str] = "sparsity"

    name: str = "flop"

    def sites(self, model: "PreTrainedModel") -> "list[Site]":
        """List the projections."""
        from pruning.models.checkpoint import clusters
        from pruning.models.sites import chosen_linears

        if self.embedding is not Embedding.none and clusters(model):
            raise ValueError(
                f"method.embedding={self.embedding}: the embedding of this model is a product "
                "already: give method.embedding=none, or prune the dense model"
            )
        return chosen_linears(model, self.modules)

    def cost(
        self, model: "PreTrainedModel", tokens: int, calibration: "Calibration", search: Search
    ) -> dict[str, float | None]:
        """Count what `method=svd` costs, and three passes of every row that is trained on."""
        rows = 3.0 * self.steps * self.batch_size * calibration.sequence_length
        start = cost_of_levels(self, model, tokens, search)
        return {**start, "training": rows, "prune": 0.0}

    def plan(self, context: PruningContext) -> Plan:
        """Train; what is kept of every projection then follows from its gates."""
        from pruning.methods.flop.learned import LearnedPlan
        from pruning.models.sites import architecture

        text = context.calibration.batches
        if architecture(context.dense.model).encoder and not text[0].labels:
            raise ValueError(
                f"method={self.name} trains an encoder on the labels of its task: leave out the "
                "calibration, and give a task such as task=sst2"
            )
        return LearnedPlan.from_context(self, context)
