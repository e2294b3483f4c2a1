"""Hard-concrete gates on the rank-one terms of a projection (FLOP, arXiv:1910.04732)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

LOW, HIGH = -0.1, 1.1  # the stretch of the concrete distribution
EDGE = 1e-6  # how near 0 and 1 the noise comes
SOFT = 0.8  # slope of the gates in evaluation, as FLOP sets it
FEW = 0.8  # share of live terms from which on the dead ones are left out of the products


class Gates(nn.Module):
    """Gates z in [0, 1], one per term, each zero with a probability that is learned.

    In training z = clamp(s (HIGH - LOW) + LOW) with s = sigmoid((logit(u) + log_alpha) / beta) and
    u uniform, drawn once per forward pass. Without `noise` u is 1/2.
    """

    def __init__(self, log_alpha: Float[Tensor, " rank"], beta: float, noise: bool):
        super().__init__()
        self.log_alpha = nn.Parameter(log_alpha.clone())
        self.beta, self.noise = beta, noise

    def sample(self) -> Float[Tensor, " rank"]:
        """Draw the gates of one forward pass."""
        logit = torch.zeros_like(self.log_alpha)
        if self.noise:
            u = torch.rand_like(self.log_alpha).clamp(EDGE, 1 - EDGE)
            logit = u.log() - (-u).log1p()
        s = torch.sigmoid((logit + self.log_alpha) / self.beta)
        return (s * (HIGH - LOW) + LOW).clamp(0, 1)

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
        z = self.gates.sample() if self.training else self.gates.fixed()
        A, B = self.A, self.B
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
        return self.A[alive], self.B[:, alive] * z[alive]
