"""An embedding as gated products: one for all tokens, or one per cluster of frequency (FLOP)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from pruning.data.batch import Batch
from pruning.latency.table import Shapes
from pruning.methods.flop.gates import GatedEmbedding, GatedLowRank
from pruning.models.modeling_pruned import (
    ClusteredHead,
    cluster_embedding_,
    scale_of,
    set_embedding_,
)
from pruning.models.sites import Kind, Site

Counts = Int[Tensor, " vocabulary"]


@dataclass
class Tokens:
    """A vocabulary in clusters, the most frequent tokens first."""

    counts: Counts  # how often each token occurs
    position: Counts  # its place in the order of frequency
    sizes: dict[Site, int]  # tokens of each cluster; its site has the terms of the product as units
    hidden: int

    @classmethod
    def from_batches(
        cls, batches: list[Batch], model: PreTrainedModel, ends: Sequence[float]
    ) -> "Tokens":
        """Count the tokens of a text, and cut where shares `ends` of the vocabulary are reached."""
        embedding: Any = model.get_input_embeddings()
        vocabulary, hidden = embedding.weight.shape
        ids = torch.cat([batch.ids[batch.mask.bool()] for batch in batches])
        counts = torch.bincount(ids, minlength=vocabulary)
        order = counts.argsort(descending=True, stable=True)
        position = torch.empty_like(order)
        position[order] = torch.arange(vocabulary)
        edges = sorted({0, *(round(end * vocabulary) for end in ends), vocabulary})
        sizes = [high - low for low, high in pairwise(edges)]
        sites = [
            Site(-1, Kind.EMBEDDING, min(size, hidden), module=f"embedding.{index}")
            for index, size in enumerate(sizes)
        ]
        return cls(counts, position, dict(zip(sites, sizes, strict=True)), hidden)

    def rows(self, model: PreTrainedModel) -> dict[Site, Float[Tensor, "tokens hidden"]]:
        """Return the embeddings of each cluster, in the order of frequency."""
        embedding: Any = model.get_input_embeddings()
        return self._split(embedding.weight.detach())

    def counted(self, site: Site) -> Int[Tensor, " tokens"]:
        """Return how often the tokens of a cluster occur."""
        return self._split(self.counts)[site]

    def _split(self, values: Tensor) -> dict[Site, Tensor]:
        parts = values[self.position.argsort().to(values.device)].split(list(self.sizes.values()))
        return dict(zip(self.sizes, parts, strict=True))


def directions(
    E: Float[Tensor, "tokens hidden"], counts: Int[Tensor, " tokens"]
) -> tuple[Float[Tensor, "hidden hidden"], Float[Tensor, " hidden"]]:
    """Return the directions of the embeddings by their share of sum_v f_v |e_v|^2, largest first.

    f_v is the count of a token plus one. Also returns these energies.
    """
    f = (counts + 1).to(E)
    energies, vectors = torch.linalg.eigh((E * f[:, None]).T @ E)
    return vectors.flip(1), energies.flip(0)


def is_tied(model: PreTrainedModel) -> bool:
    """Tell whether the head shares the embedding's parameters."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if isinstance(head, ClusteredHead):
        return True
    return head is not None and head.weight is getattr(embedding, "weight", None)


def install_(model: PreTrainedModel, tokens: Tokens, parts: Sequence[GatedLowRank]) -> None:
    """Put gated clusters in the place of the dense embedding; a tied head then uses them too."""
    tied, scale = is_tied(model), scale_of(model.get_input_embeddings())
    gated = GatedEmbedding(tokens.position.to(model.device), parts, scale)
    set_embedding_(model, gated, tied)


@torch.no_grad()
def fold_(pruned: PreTrainedModel, dense: PreTrainedModel, shapes: Shapes) -> None:
    """Replace a gated embedding by one whose clusters have these ranks; full ones are merged."""
    gated: Any = pruned.get_input_embeddings()
    products = []
    for part, (site, rank) in zip(gated.parts, shapes.items(), strict=True):
        whole = rank == site.whole
        A, B = part.folded() if whole else part.folded(rank.units)
        products.append(((B @ A).T, None) if whole else (A.T, B))
    tied = is_tied(pruned)
    pruned.set_input_embeddings(dense.get_input_embeddings())  # whose sizes are to be replaced
    new: Any = cluster_embedding_(
        pruned, [len(codes) for codes, _ in products], [c.shape[1] for c, _ in products], tied
    )
    new.position.copy_(gated.position)
    triples: Any = zip(products, new.codes, new.bases, strict=True)
    for (codes, basis), into, onto in triples:
        into.weight.copy_(codes)
        if basis is not None:
            onto.weight.copy_(basis)
