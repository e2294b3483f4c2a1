"""FLOP: low-rank factors whose ranks are learned by gates (arXiv:1910.04732)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from pruning.methods.method import Method, Plan, Subject
from pruning.search.search import Guided

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.models.sites import Site


class Embedding(StrEnum):
    """How the embedding, and a head tied to it, becomes a product with gates."""

    none = "none"
    lowrank = "lowrank"  # one for all tokens
    adaptive = "adaptive"  # one for each cluster of tokens, by their frequency


@dataclass
class FLOP(Method):
    """Every projection is a product B G A with gates G; weights and gates are trained together.

    The loss is that of the next token, or for an encoder that of its task.

    An augmented Lagrangian holds the expected cost to the target: milliseconds of the latency table
    where there is a speedup, else parameters. It starts from what `method=svd` would do: from its
    factors, with gates that are open up to the ranks that the search chooses.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1910.04732"
    searches: ClassVar[type[Guided]] = Guided
    again: ClassVar[bool] = False
    dial: ClassVar[str] = "sparsity"

    sparsity: float | None = MISSING  # share of the projections' parameters to remove
    modules: str = MISSING  # glob of the projections' paths within a block
    embedding: Embedding = MISSING
    clusters: list[float] = MISSING  # where they end: shares of the vocabulary, by frequency
    whiten: bool = MISSING  # factors from the SVD of the outputs on the calibration text
    room: float = MISSING  # terms at the start, in multiples of the ranks that the search chooses
    slope: float = MISSING  # how fast gates open at the start, from the chosen rank to larger terms
    beta: float = MISSING  # temperature of the gates
    noise: bool = MISSING  # of the gates in training
    steps: int = MISSING
    warmup: float = MISSING  # share of the steps over which the target grows
    batch: int = MISSING  # sequences per step
    rate: float = MISSING  # learning rate of the weights
    gate_rate: float = MISSING  # of the gates
    multiplier_rate: float = MISSING  # of the multipliers
    penalty: float = MISSING  # multiplier of the squared distance from the target at the start
    clip: float = MISSING  # largest norm of the weights' gradient
    save: int = MISSING  # steps between checkpoints, from which a killed run goes on

    def __post_init__(self) -> None:
        if self.embedding in (Embedding.lowrank, Embedding.adaptive) and self.sparsity is None:
            raise ValueError(
                f"method.embedding={self.embedding} saves parameters and no time: give "
                "method.sparsity and speedup=null, or method.embedding=none"
            )
        if isinstance(self.clusters, list) and not (
            all(0 < end < 1 for end in self.clusters)
            and sorted(set(self.clusters)) == self.clusters
        ):
            raise ValueError(f"method.clusters={self.clusters} must ascend between 0 and 1")
        for field in ("sparsity", "warmup"):
            value = getattr(self, field)
            if isinstance(value, float) and not 0 < value < 1:
                raise ValueError(f"method.{field}={value} must lie between 0 and 1")
        for field in ("slope", "beta", "rate", "gate_rate", "multiplier_rate", "clip"):
            value = getattr(self, field)
            if isinstance(value, float) and value <= 0:
                raise ValueError(f"method.{field}={value} must be above 0")
        if isinstance(self.room, float) and self.room < 1:
            raise ValueError(f"method.room={self.room} must be at least 1")
        for field in ("steps", "batch", "save"):
            value = getattr(self, field)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"method.{field}={value} must be at least 1")

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

    def ends(self) -> list[float]:
        """Return where clusters of tokens end."""
        return self.clusters if self.embedding is Embedding.adaptive else []

    def plan(self, subject: Subject) -> Plan:
        """Train; what is kept of every projection then follows from its gates."""
        from pruning.methods.learned import LearnedPlan
        from pruning.models.sites import architecture

        if architecture(subject.dense).encoder and not subject.batches[0].labels:
            raise ValueError(
                f"method={self.name} trains an encoder on the labels of its task: leave out the "
                "calibration, and give a task such as task=sst2"
            )
        return LearnedPlan.of(self, subject)
