"""Experts of a block: stacked weights, and the router that has a row for each."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pruning.models.modeling_pruned import Architecture, find, replace_


@dataclass(frozen=True)
class Stacked:
    """The weights of all experts of a block, and of their router."""

    router: Float[Tensor, "experts hidden"]
    gate_up: Float[Tensor, "experts rows hidden"]  # gates, then what they multiply
    down: Float[Tensor, "experts hidden width"]


def experts_of(block: nn.Module, a: Architecture) -> Stacked | None:
    """Return the weights of a block's experts, None where it has none."""
    experts = find(block, a.experts) if a.experts else None
    if experts is None:
        return None
    return Stacked(find(block, a.router).weight, experts.gate_up_proj, experts.down_proj)


def cut_experts_(
    block: nn.Module, a: Architecture, keep: Bool[Tensor, "experts width"], old: Stacked | None
) -> None:
    """Fill the experts of a block, which have their new sizes, with what is kept of old ones."""
    new = experts_of(block, a)
    assert new is not None
    assert old is not None
    keep = keep.to(old.down.device)
    chosen = keep.any(1).nonzero().flatten()
    new.router.copy_(old.router[chosen])
    width = keep.shape[1]
    for place, index in enumerate(chosen.tolist()):
        channels = keep[index].nonzero().flatten()
        new.gate_up[place].copy_(old.gate_up[index, torch.cat([channels, width + channels])])
        new.down[place].copy_(old.down[index][:, channels])


class KeptExperts(nn.Module):
    """A router that chooses among some experts alone, by the numbers that they have among all."""

    kept: Int[Tensor, " kept"]

    def __init__(self, router: Any, kept: Bool[Tensor, " experts"]):
        super().__init__()
        self.router = deepcopy(router)
        self.router.weight = nn.Parameter(router.weight.detach()[kept], requires_grad=False)
        self.router.num_experts = int(kept.sum())
        self.top_k = router.top_k
        self.register_buffer("kept", kept.nonzero().flatten())

    def forward(self, hidden: Float[Tensor, "tokens hidden"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of those that are kept, gates of the chosen ones, and which they are."""
        logits, gates, chosen = self.router(hidden)
        return logits, gates, self.kept[chosen]


@torch.no_grad()
def mask_experts_(
    block: nn.Module, a: Architecture, keep: Bool[Tensor, " units"], count: int
) -> None:
    """Zero the channels that are dropped; never choose an expert of which none is left."""
    stacked = experts_of(block, a)
    assert stacked is not None
    by_expert = keep.view(count, -1).to(stacked.down.device)
    stacked.down.mul_(by_expert[:, None])
    if (some := by_expert.any(1)).any():
        replace_(block, a.router, KeptExperts(find(block, a.router), some))
