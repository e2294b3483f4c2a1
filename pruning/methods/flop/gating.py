"""Gated products in the place of a dense model's projections, and of its embedding."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from pruning.calibration.moments import Moments
from pruning.latency.table import Shapes
from pruning.methods.flop.embedding import Tokens, directions, install_
from pruning.methods.flop.gates import GatedEmbedding, GatedLowRank, Gates
from pruning.methods.flop.recipe import Recipe
from pruning.models.modeling_pruned import replace_
from pruning.models.sites import Kind, Site, architecture, blocks, projection, weight
from pruning.solver.ranks import components

CLOSED, OPEN = -5.0, 5.0  # log_alpha of gates at the start, away from the rank that is chosen
EVEN = -2.4  # log_alpha at which a gate is open as often as closed, with beta 1


def product(model: PreTrainedModel, site: Site) -> GatedLowRank:
    """Return the gated product of a projection, or of a cluster of the embedding."""
    if site.kind is Kind.EMBEDDING:
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, GatedEmbedding)
        part = embedding.parts[int(site.module.rpartition(".")[2])]
    else:
        part = projection(model, site)
    assert isinstance(part, GatedLowRank)
    return part


@torch.no_grad()
def gated_(
    model: PreTrainedModel,
    moments: Moments,
    ranks: Shapes,
    method: Recipe,
    tokens: Tokens | None = None,
) -> PreTrainedModel:
    """Replace projections, and with `tokens` the embedding, by gated products, the best of a rank.

    Gates of larger terms than that at the chosen rank start open, those of smaller ones closed, by
    the logarithm of a term's share of the outputs' energy: `slope` per standard deviation of it.
    B makes up for gates that are half open. What is to stay dense has all its terms.
    """
    factors: dict[Site, tuple[Tensor, Tensor]] = {}
    shares: dict[Site, Float[Tensor, " rank"]] = {}
    rows = {} if tokens is None else tokens.rows(model)
    for site, rank in ranks.items():
        room = min(site.units, math.ceil(method.room * rank.units))
        if site in rows:
            assert tokens is not None
            W = rows[site].double().T
            U, energies = directions(W.T, tokens.counted(site))
            whole = energies.sum()
        else:
            W = weight(projection(model, site)).double()
            H = moments[site].all.H.to(W) if method.whiten else torch.eye(W.shape[1]).to(W)
            U = components(W, H)
            energies, whole = (((U.T @ W @ H) * (U.T @ W)).sum(1), (W @ H * W).sum())
        U = U[:, :room]
        factors[site] = U.T @ W, U
        shares[site] = (energies[:room] / whole).clamp(min=1e-12).log()
    moments.release()
    spread = torch.cat(list(shares.values())).std().clamp(min=1e-6)
    clusters = []
    for site, (A, B) in factors.items():
        rank, share = ranks[site].units, shares[site]
        log_alpha = torch.full_like(share, OPEN)
        if rank < site.units:
            cut = share[min(rank, len(share) - 1)]
            log_alpha = (EVEN + method.slope * (share - cut) / spread).clamp(CLOSED, OPEN)
        gates = Gates(log_alpha.to(model.device), method.beta, method.noise)
        A, B = (t.to(model.dtype) for t in (A, B / gates.fixed(len(A)).clamp(min=0.5).to(B)))
        if site in rows:
            clusters.append(GatedLowRank(A, B, None, gates))
            continue
        bias = projection(model, site).bias
        bias = bias if isinstance(bias, Tensor) else None
        replace_(blocks(model)[site.block], site.module, GatedLowRank(A, B, bias, gates))
    if tokens is not None:
        install_(model, tokens, clusters)
    return model


@torch.no_grad()
def restored_(
    model: PreTrainedModel,
    sites: list[Site],
    state: dict[str, Tensor],
    method: Recipe,
    tokens: Tokens | None = None,
) -> None:
    """Give a dense model the gated products and all parameters of a trained one."""
    embedding = model.get_input_embeddings()
    (where,) = (name for name, module in model.named_modules() if module is embedding)
    clusters = []
    for site in sites:
        if site.kind is Kind.EMBEDDING:
            path = f"{where}.parts.{len(clusters)}"
        else:
            path = f"{architecture(model).blocks}.{site.block}.{site.module}"
        gates = Gates(state[f"{path}.gates.log_alpha"], method.beta, method.noise)
        factors = state[f"{path}.A"], state[f"{path}.B"], state.get(f"{path}.bias")
        if site.kind is Kind.EMBEDDING:
            clusters.append(GatedLowRank(*factors, gates))
        else:
            replace_(blocks(model)[site.block], site.module, GatedLowRank(*factors, gates))
    if tokens is not None:
        install_(model, tokens, clusters)
    for name, parameter in model.named_parameters():
        parameter.copy_(state[name])
