"""Hard-concrete gates on the rank-one terms of a projection (FLOP, arXiv:1910.04732)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.models.modeling_pruned import look_up

LOW, HIGH = -0.1, 1.1  # the stretch of the concrete distribution
EDGE = 1e-6  # how near 0 and 1 the noise comes
SOFT = 0.8  # slope of the gates in evaluation, as FLOP sets it
FEW = 0.8  # share of live terms from which on the dead ones are left out of the products


class Gates(nn.Module):
    """Gates z in [0, 1], one per term, each zero with a probability that is learned.

    In training z = clamp(s (HIGH - LOW) + LOW) with s = sigmoid((logit(u) + log_alpha) / beta) and
    u uniform, drawn once per forward pass. Without `noise` u is 1/2.

    They stay in float32 whatever type the model is cast to: in bfloat16 a sum of probabilities has
    steps of 8 from 1024 terms on.
    """

    def __init__(self, log_alpha: Float[Tensor, " rank"], beta: float, noise: bool):
        super().__init__()
        self.log_alpha = nn.Parameter(log_alpha.float().clone())
        self.beta, self.noise = beta, noise

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Gates":
        def moved(t: Tensor) -> Tensor:
            new = fn(t)
            return new if new.dtype == t.dtype else t.to(new.device)

        return super()._apply(moved, recurse)

    def sample(self) -> Float[Tensor, " rank"]:
        """Draw the gates of one forward pass."""
        logit = torch.zeros_like(self.log_alpha)
        if self.noise:
            u = torch.rand_like(self.log_alpha).clamp(EDGE, 1 - EDGE)
            logit = u.log() - (-u).log1p()
        s = torch.sigmoid((logit + self.log_alpha) / self.beta)
        return (s * (HIGH - LOW) + LOW).clamp(0, 1)

    def draw(self) -> Float[Tensor, " rank"]:
        """Return the gates of one forward pass: drawn in training, else those of evaluation."""
        return self.sample() if self.training else self.fixed()

    def rank(self, shift: float = 0.0) -> Float[Tensor, ""]:
        """Return E||z||_0 with all log_alpha shifted: the sum of P(z > 0)."""
        offset = self.beta * math.log(-LOW / HIGH)
        return torch.sigmoid(self.log_alpha + shift - offset).sum()

    def order(self) -> Tensor:
        """Return the terms by log_alpha, the largest first."""
        return self.log_alpha.argsort(descending=True, stable=True)

    @torch.no_grad()
    def fixed(self, rank: int | None = None) -> Float[Tensor, " rank"]:
        """Return the gates of evaluation: soft ones for the first `rank` terms, 0 for the others.

        By default as many stay as E||z||_0 says.
        """
        rank = round(float(self.rank())) if rank is None else rank
        kept = self.order()[:rank]
        z = torch.zeros_like(self.log_alpha)
        z[kept] = torch.sigmoid(SOFT * self.log_alpha[kept] / self.beta)
        return z


class GatedLowRank(nn.Module):
    """A projection as a product with gates in it: out = B diag(z) A x + bias."""

    def __init__(
        self,
        A: Float[Tensor, "rank columns"],
        B: Float[Tensor, "rows rank"],
        bias: Tensor | None,
        gates: Gates,
    ):
        super().__init__()
        self.A, self.B = nn.Parameter(A.clone()), nn.Parameter(B.clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.gates = gates

    def forward(self, inputs: Tensor) -> Tensor:
        """Project; where enough gates are 0, with the live terms alone."""
        A, B = self.A, self.B
        z = self.gates.draw().to(A.dtype)
        alive = z.nonzero().flatten()
        if len(alive) <= FEW * len(z):
            A, B, z = A[alive], B[:, alive], z[alive]
        return F.linear(F.linear(inputs, A) * z, B, self.bias)

    @torch.no_grad()
    def folded(
        self, rank: int | None = None
    ) -> tuple[Float[Tensor, "kept columns"], Float[Tensor, "rows kept"]]:
        """Return A and B of the terms that evaluation keeps, the gates folded into B."""
        z = self.gates.fixed(rank)
        alive = z.nonzero().flatten()
        return self.A[alive], (self.B[:, alive] * z[alive]).to(self.B.dtype)


class GatedEmbedding(nn.Module):
    """An embedding as gated products, one per cluster of tokens; A holds the tokens' codes.

    `position` is a token's place among all clusters one behind the other. A tied head takes the
    gates that were drawn for the embedding, so that both are of one rank.
    """

    position: Tensor

    def __init__(
        self,
        position: Int[Tensor, " vocabulary"],
        parts: Sequence[GatedLowRank],
        scale: float = 1.0,
    ):
        super().__init__()
        self.register_buffer("position", position)
        self.scale = scale  # of what is looked up
        self.parts = nn.ModuleList(parts)
        self.drawn: list[Tensor] = []

    def forward(self, ids: Tensor) -> Tensor:
        """Look up."""
        parts: Any = list(self.parts)
        self.drawn = [part.gates.draw().to(part.A.dtype) for part in parts]
        look_ups = [
            lambda place, p=part, z=z: F.linear(F.embedding(place, p.A.t()) * z, p.B)
            for part, z in zip(parts, self.drawn, strict=True)
        ]
        embedded = look_up(self.position[ids], [part.A.shape[1] for part in parts], look_ups)
        return embedded * torch.tensor(self.scale).to(embedded)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the products with the embeddings of all tokens."""
        pairs: Any = zip(self.parts, self.drawn, strict=True)
        logits = [F.linear(hidden, part.B.t()) * z @ part.A for part, z in pairs]
        return torch.cat(logits, -1).index_select(-1, self.position)
