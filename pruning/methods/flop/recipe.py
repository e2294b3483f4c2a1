"""What FLOP's training is given: below the method and what carries it out."""

from dataclasses import dataclass, field
from enum import StrEnum

from pruning.system.options import Options


class Embedding(StrEnum):
    """How the embedding, and a head tied to it, becomes a product with gates."""

    none = "none"
    lowrank = "lowrank"  # one for all tokens
    adaptive = "adaptive"  # one for each cluster of tokens, by their frequency


@dataclass
class Recipe(Options):
    """How factors get gates, and how both are trained."""

    where = "method"
    # share of the projections' parameters to remove; then speedup=null
    sparsity: float | None = None
    modules: str = "*"  # glob of the projections' paths within a block
    embedding: Embedding = Embedding.none  # whether it is a product too; with sparsity alone
    # adaptive: where clusters end, as shares of the vocabulary by frequency
    clusters: list[float] = field(default_factory=lambda: [0.1, 0.4])
    whiten: bool = True  # factors from the SVD of the outputs on the calibration text
    room: float = 1.5  # terms at the start, in multiples of the ranks that the search chooses
    slope: float = 8.0  # how fast gates open at the start, from the chosen rank to larger terms
    beta: float = 1.0  # temperature of the gates
    noise: bool = True  # gates are drawn in training, or false: deterministic
    steps: int = 90  # of training
    warmup: float = 0.5  # share of the steps over which the target grows to its full size
    batch_size: int = 2  # sequences per step, of calibration.sequence_length tokens
    learning_rate: float = 0.0001  # learning rate of the weights; falls to 0
    gate_learning_rate: float = 0.1  # of the gates
    multiplier_learning_rate: float = 1.0  # of the Lagrange multipliers
    # multiplier of the squared distance at the start; short runs need it, 0 is as published
    penalty: float = 5000
    max_grad_norm: float = 1.0  # largest norm of the weights' gradient
    save_steps: int = 30  # steps between checkpoints, from which a killed run goes on

    def __post_init__(self) -> None:
        super().__post_init__()
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
        self.check_range("sparsity", "warmup", above=0, below=1)
        rates = ("learning_rate", "gate_learning_rate", "multiplier_learning_rate")
        self.check_range("slope", "beta", *rates, "max_grad_norm", above=0)
        self.check_range("room", "steps", "batch_size", "save_steps", least=1)
        self.check_range("penalty", least=0)

    def ends(self) -> list[float]:
        """Return where clusters of tokens end."""
        return self.clusters if self.embedding is Embedding.adaptive else []
