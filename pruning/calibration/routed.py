"""What the experts of a block read: moments of the tokens that are routed to each."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pruning.calibration.moment import Accumulator, Split
from pruning.models.sites import Site
from pruning.models.tensor_files import Place

SAMPLE = 4096  # tokens in front of the experts that are kept, to fit and held out
PARTS = ("fit", "held")


@dataclass
class Sample:
    """Some of the tokens that reach the experts of a block."""

    inputs: Float[Tensor, "tokens hidden"]
    weights: Float[Tensor, " tokens"]


@dataclass
class Routed:
    """What a router gives the experts of a block, of tokens to fit and held out."""

    norms: Float[
        Tensor, "parts experts"
    ]  # sums over routed tokens of gate x |output of the expert|
    counts: Float[Tensor, "parts experts"]  # routed tokens
    fit: Sample
    held: Sample

    @property
    def reap(self) -> Float[Tensor, " experts"]:
        """Return the mean over an expert's tokens of gate x |output|: REAP (arXiv:2510.13999)."""
        return self.norms.sum(0) / self.counts.sum(0).clamp(min=1)

    def stored(self, name: str) -> dict[str, Tensor]:
        """Return what is written of it, below a name."""
        tensors = {f"{name}.norms": self.norms, f"{name}.counts": self.counts}
        for part, sample in zip(PARTS, (self.fit, self.held), strict=True):
            tensors[f"{name}.{part}.inputs"] = sample.inputs
            tensors[f"{name}.{part}.weights"] = sample.weights
        return tensors

    @classmethod
    def read(cls, lying: dict[str, Place], name: str, device: torch.device) -> "Routed":
        """Read what was written below a name."""

        def get(key: str) -> Tensor:
            return lying[f"{name}.{key}"].read().to(device)

        fit, held = (Sample(get(f"{part}.inputs"), get(f"{part}.weights")) for part in PARTS)
        return cls(get("norms"), get("counts"), fit, held)


class RoutedSums:
    """The running sums of one block's experts; `experts` is the module that has their weights.

    A token counts in an expert's moments by its own weight times the square of its gate: so does
    the expert's error in what the block gives.
    """

    def __init__(
        self,
        site: Site,
        experts: Any,
        batches: tuple[int, int],
        device: torch.device,
        held_out_alone: bool = False,  # and no samples
    ):
        self.site, self.experts, self.samples_too = site, experts, not held_out_alone
        self.most = [-(-SAMPLE // max(1, count)) for count in batches]  # of each batch
        width = site.units // site.groups
        columns = 0 if held_out_alone else width, width
        self.sums = [[Accumulator(n, device) for n in columns] for _ in range(site.groups)]
        self.norms, self.counts = torch.zeros(2, len(PARTS), site.groups, device=device)
        self.samples: list[list[Sample]] = [[], []]

    @torch.no_grad()
    def add_(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        chosen: Int[Tensor, "tokens k"],
        gates: Float[Tensor, "tokens k"],
        w: Float[Tensor, " tokens"],
        held_out: bool,
    ) -> None:
        """Add tokens, the experts that were chosen for each, and the gates of these."""
        part, experts = int(held_out), self.experts
        for index, sums in enumerate(self.sums):
            tokens, places = (chosen == index).nonzero(as_tuple=True)
            real = w[tokens] > 0
            tokens, places = tokens[real], places[real]
            if not len(tokens):
                continue
            x = hidden[tokens].to(experts.gate_up_proj.dtype)
            gate, up = (x @ experts.gate_up_proj[index].T).chunk(2, -1)
            X = experts.act_fn(gate) * up
            own = gates[tokens, places].float()
            sums[part].add_(X, w[tokens] * own.square())
            outputs = X @ experts.down_proj[index].T.to(X.dtype)
            self.norms[part, index] += (own * outputs.float().norm(dim=-1)).sum()
            self.counts[part, index] += len(tokens)
        if not self.samples_too:
            return
        there = (w > 0).nonzero().flatten()
        most = self.most[part]
        if len(there) > most:
            there = there[torch.arange(most, device=there.device) * len(there) // most]
        self.samples[part].append(Sample(hidden[there].to(experts.down_proj.dtype), w[there]))

    def result(self) -> tuple[Routed, dict[Site, Split]]:
        """Return what the router gave, and the moments of every expert."""
        splits: dict[Site, Split] = {}
        for one, (fit, held) in zip(self.site.each, self.sums, strict=True):
            weight = max(fit.weight + held.weight, 1e-30)
            splits[one] = Split(fit.mean(), held.mean(), held.weight / weight)
        width = self.experts.down_proj.shape[1]
        none = Sample(self.norms.new_empty(0, width), self.norms.new_empty(0))
        fit, held = (
            Sample(*(torch.cat(tensors) for tensors in zip(*map(_pair, mine), strict=True)))
            if mine
            else none
            for mine in self.samples
        )
        return Routed(self.norms, self.counts, fit, held), splits


def _pair(sample: Sample) -> tuple[Tensor, Tensor]:
    return sample.inputs, sample.weights
