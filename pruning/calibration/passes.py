"""Passes of the text that take the moments, one block in memory at a time."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.calibration.calibration import Weight
from pruning.calibration.moment import Accumulator, Split
from pruning.calibration.routed import Routed, RoutedSums
from pruning.data.batch import Batch
from pruning.models.blockwise import State, embed
from pruning.models.sites import Kind, Site, a_norm, blocks, dividing_norms, projection, sub_block
from pruning.models.sites import weight as matrix
from pruning.models.streamed import opened
from pruning.system.precision import computing
from pruning.system.progress import track

Outputs = dict[Site, list[Float[Tensor, "tokens rows"]]]  # of a block's sites, per state


@dataclass(frozen=True)
class Reading:
    """What is read of a block, and how much its tokens weigh."""

    sites: list[Site]  # of which inputs
    weight: Weight
    targets: Outputs | None = None  # for every state; None: what the sites' own weights give
    held_out_alone: bool = False  # the moments to fit are then of no columns


class _Seen(Exception):
    """All inputs that are asked for were there; what follows in the block is not needed."""


@contextmanager
def inputs_of(
    model: PreTrainedModel, sites: list[Site], stop: bool
) -> Iterator[dict[Site, tuple[Tensor, ...]]]:
    """Note the first inputs of each site's projection; with `stop` leave the block by _Seen then.

    DeBERTa's queries and keys read positions after the tokens.
    """
    seen: dict[Site, tuple[Tensor, ...]] = {}

    def note(site: Site):
        def hook(module, args) -> None:
            seen.setdefault(site, args)
            if stop and len(seen) == len(sites):
                raise _Seen

        return hook

    with ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(projection(model, site).register_forward_pre_hook(note(site)))
        yield seen


@torch.no_grad()
def collect(
    model: PreTrainedModel,
    batches: list[Batch],
    weight: Weight,
    sites: list[Site],
    in_bfloat16: bool = False,
    done: Callable[[int], bool] = lambda index: False,
) -> Iterator[dict[Site, Split | Routed]]:
    """Yield the moments of the sites of one block after the other, none of blocks that are `done`.

    Beyond the model, memory holds the hidden states of every batch and one block's moments. With
    `weight` residual a token counts 1 / d^2, where d is what the next norm that reads the stream
    with a site's error in it divides that token by; times what a norm in front of the addition
    divides it by, where there is one. Of experts there is what their router gives them, and the
    moments of each one.
    """
    states = [embed(model, batch, in_bfloat16) for batch in batches]
    of_block: dict[int, list[Site]] = {}
    for site in sites:
        of_block.setdefault(site.block, []).append(site)
    for index in track(range(len(blocks(model))), "calibrate: blocks"):
        reading = Reading([] if done(index) else of_block.get(index, []), weight)
        with opened(blocks(model)[index]):
            moments = block_moments(model, index, states, reading, advance=True)
        yield moments
        del moments  # the next block's take its place


@torch.no_grad()
def block_moments(
    model: PreTrainedModel,
    index: int,
    states: list[State],
    reading: Reading,
    advance: bool,
) -> dict[Site, Split | Routed]:
    """Run block `index` on every state; return the moments of its sites that are read.

    With `advance` the states go on behind the block, else they stay in front of it: then the first
    call says how much each token weighs in this block, for both sub-blocks, and further ones run
    only as much of it as they need.
    """
    sites, targets = reading.sites, reading.targets
    block, device = blocks(model)[index], model.device
    alike = {site.reads: site for site in reversed(sites)}  # one site for each kind of inputs
    routed = alike.pop(Kind.EXPERTS.value, None)
    held_out = sum(state.batch.held_out for state in states)
    counts = len(states) - held_out, held_out
    to_experts = routed and RoutedSums(
        routed, projection(model, routed), counts, device, reading.held_out_alone
    )
    columns = {site: matrix(projection(model, site)).shape[1] for site in alike.values()}
    sums = {
        site: [Accumulator(0 if reading.held_out_alone else n, device), Accumulator(n, device)]
        for site, n in columns.items()
    }
    known = not advance and all(state.weights is not None for state in states)
    read_by = [*sums, *filter(None, [routed])]
    with inputs_of(model, read_by, stop=known) as inputs, inputs_of_norms(model, index) as divided:
        for number, state in enumerate(states):
            inputs.clear()
            w = state.weights or {}
            if known:
                with suppress(_Seen):
                    state.run(index, block)
            else:
                hidden = state.advance(index, block) if advance else state.run(index, block)
                if sites:
                    norm = a_norm(model, index)
                    w = token_weights(norm, state.batch, divided, hidden, reading.weight)
                if not advance:
                    state.weights = w
            for site, (fit, held) in sums.items():
                X = inputs[site][0].flatten(0, -2)
                Y = None if targets is None else targets[site][number].to(device)
                own = w[sub_block(model, site)].flatten().to(X.device)
                (held if state.batch.held_out else fit).add_(X, own, Y)
            if routed and to_experts:
                hidden, chosen, gates = inputs[routed]
                own = w[sub_block(model, routed)].flatten().to(hidden.device)
                with computing(state.in_bfloat16, device):
                    to_experts.add_(hidden, chosen, gates, own, state.batch.held_out)
    for both in sums.values():
        for accumulator in both:
            accumulator.add_processes_()
    splits: dict[str, Split] = {}
    for site, (fit, held) in sums.items():
        share = held.weight / max(fit.weight + held.weight, 1e-30)
        splits[site.reads] = Split(fit.mean(), held.mean(), share)
    given: dict[Site, Split | Routed] = {
        site: splits[site.reads] for site in sites if site != routed
    }
    if routed and to_experts:
        given[routed], each = to_experts.result()
        given |= each
    return given


@contextmanager
def inputs_of_norms(
    model: PreTrainedModel, index: int
) -> Iterator[dict[Kind, list[Tensor | None]]]:
    """Note what the norms read that divide what the sub-blocks of block `index` give.

    None stands for what leaves the block, which a later one divides.
    """
    norms = dividing_norms(model, index)
    seen: dict[Kind, list[Tensor | None]] = {
        kind: [None] * len(mine) for kind, mine in norms.items()
    }

    def note(kind: Kind, place: int):
        def hook(module, args) -> None:
            seen[kind][place] = args[0]

        return hook

    with ExitStack() as hooks:
        for kind, mine in norms.items():
            for place, norm in enumerate(mine):
                if norm is not None:
                    hooks.enter_context(norm.register_forward_pre_hook(note(kind, place)))
        yield seen


def token_weights(
    norm: nn.Module,
    batch: Batch,
    divided: dict[Kind, list[Tensor | None]],
    leaving: Tensor,
    weight: Weight,
) -> dict[Kind, Float[Tensor, "batch sequence"]]:
    """Say how much every token counts for each sub-block, padding not at all.

    `divided` is what the norms divide that see the sub-block's error, None what is `leaving` the
    block; `norm` is like them.
    """
    mask = batch.mask.float().to(leaving.device)
    weights = dict.fromkeys(divided, mask)
    if weight is Weight.residual:
        for kind, inputs in divided.items():
            for h in inputs:
                divisor = _divisor(norm, leaving if h is None else h).to(leaving.device)
                weights[kind] = weights[kind] / divisor.reshape(mask.shape)
    return weights


def _divisor(norm: nn.Module, h: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens"]:
    """Return the square of what a norm divides each token by: of RMSNorm, or of LayerNorm."""
    h = h.float()
    if isinstance(norm, nn.LayerNorm):
        h = h - h.mean(-1, keepdim=True)
    eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", 0.0)
    return (h.square().mean(-1) + eps).clamp(min=1e-12)


@contextmanager
def outputs_of(
    model: PreTrainedModel, sites: list[Site]
) -> Iterator[dict[Site, Float[Tensor, "tokens rows"]]]:
    """Note what each site's projection gives, with its bias."""
    given: dict[Site, Tensor] = {}

    def note(site: Site):
        def hook(module, args, out: Tensor) -> None:
            given[site] = out.reshape(-1, out.shape[-1])

        return hook

    with ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(projection(model, site).register_forward_hook(note(site)))
        yield given


@torch.no_grad()
def outputs(model: PreTrainedModel, index: int, states: list[State], sites: list[Site]) -> Outputs:
    """Take every state behind block `index`; return what its sites gave, without their biases.

    The block is open.
    """
    given: Outputs = {site: [] for site in sites}
    with outputs_of(model, sites) as seen:
        for state in states:
            home = state.advance(index, blocks(model)[index]).device
            for site, of_site in given.items():
                b = getattr(projection(model, site), "bias", None)  # experts have none
                of_site.append((seen[site] if b is None else seen[site] - b).to(home))
    return given
