"""Units in random order: what search and shrinking are worth on their own."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.methods.scored import Scored

if TYPE_CHECKING:
    from torch import Tensor

    from pruning.models.sites import Site


@dataclass
class Random(Scored):
    """Units leave in an order that depends on nothing but a seed."""

    paper: ClassVar[str] = "https://arxiv.org/abs/1801.10447"

    name: str = "random"
    seed: int = 0  # of the order

    def score(self, site: "Site", W: "Tensor", H: "Tensor") -> "Tensor":
        """Return random numbers, the same for the same seed and site."""
        import torch

        name = hashlib.sha256(f"{self.seed} {site.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name[:4], "big"))
        return torch.rand(W.shape[1], generator=generator).to(W.device)
