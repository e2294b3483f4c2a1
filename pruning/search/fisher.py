"""Losses of levels to second order, by the Fisher information: one backward pass for all."""

import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.models.blockwise import predict
from pruning.models.sites import Kind, Site, architecture, blocks, norm_behind, projection
from pruning.models.streamed import opened
from pruning.search.trial import CandidateEvaluator
from pruning.solver.levels import dear
from pruning.system.precision import computing
from pruning.system.progress import track

Gradients = Tensor  # [draws, batch, sequence, hidden]


@dataclass
class _Note:
    """What a site read and gave for one batch, and the gradients there."""

    x: Tensor  # input of its module
    given: Tensor  # output of its module
    normed: Tensor | None  # input of the norm behind it, if there is one
    out: Tensor  # what leaves the last of these
    gradients: Tensor  # of log-likelihoods by `out`, a draw after the other


def fisher_losses(
    trial: CandidateEvaluator, levels: Sequence[Sequence[int]], draws: int
) -> list[dict[int, float]]:
    """Estimate each site's loss increase at these levels, all other sites dense.

        KL(p || p') ~ 1/2 E_y [(g . d)^2],   g = d(-log p(y)) / d out,   y ~ p

    The expectation of g g^T is the Fisher information of what a sub-block gives (out, which a level
    changes by d), so this is the divergence to second order; `draws` labels a prediction stand for
    it. The changes of two tokens of a text are taken as independent, those within a row of an
    encoder, which has one prediction, are not. For a regression it is the squared difference.

    Text goes forward once, and once more block by block on the way back, where each block is left
    behind `draws` times. The hidden states in front of every block are in memory, and one block's
    gradients. Nothing else depends on the number of levels than a product for each.
    """
    assert trial.dense  # finite, and not yet changed
    model = trial.model
    entering = [[state.hidden for state in trial.states]]
    with torch.no_grad():
        for index in range(len(blocks(model))):
            entering.append(trial.behind(index, entering[-1]))
    gradients, predictions = _of_labels(trial, entering.pop(), draws)
    losses: list[dict[int, float]] = [{} for _ in trial.sites]
    for index in track([*reversed(range(len(entering)))], "search: sensitivities"):
        with trial.block(index) as block:
            notes, gradients = _backward(trial, index, block, entering[index], gradients)
            for place, of_site in notes.items():
                for level in levels[place]:
                    if trial.writer(place, level) is not None:
                        instead = _taken_over(trial, place, entering)
                    else:
                        instead = _given(trial, place, level, of_site)
                    squares = _squares(trial, of_site, instead)
                    losses[place][level] = dear(squares / (2 * draws * predictions))
        entering.pop()
    return losses


def _of_labels(
    trial: CandidateEvaluator, leaving: Sequence[Tensor], draws: int
) -> tuple[list[Gradients], int]:
    """Return the gradients of drawn labels behind the last block, and the number of predictions.

    Of a regression, whose loss is (z' - z)^2, it is sqrt(2) dz, for every draw the same.
    """
    generator, gradients, predictions = torch.Generator().manual_seed(0), list[Tensor](), 0
    for state, compared, hidden in zip(trial.states, trial.compared, leaving, strict=True):
        leaf = hidden.detach().requires_grad_()
        with torch.enable_grad(), computing(state.in_bfloat16, trial.model.device):
            z = predict(trial.model, compared, leaf).float()
            if z.shape[1] == 1:
                sums = [math.sqrt(2) * z.sum()] * draws
            else:
                log_p = z.log_softmax(-1)
                p = log_p.detach().exp().cpu()
                y = torch.multinomial(p, draws, replacement=True, generator=generator)
                sums = [*-log_p.gather(1, y.to(z.device)).sum(0)]
        of_draws = [torch.autograd.grad(s, leaf, retain_graph=True)[0] for s in sums]
        gradients.append(torch.stack(of_draws))
        predictions += len(z)
    return gradients, predictions


def _backward(
    trial: CandidateEvaluator,
    index: int,
    block: nn.Module,
    entering: Sequence[Tensor],
    behind: Sequence[Gradients],
) -> tuple[dict[int, list[_Note]], list[Gradients]]:
    """Run a block on what enters it; return notes of its sites, and gradients in front of it."""
    places = trial.places[index]
    notes: dict[int, list[_Note]] = {place: [] for place in places}
    before: list[Tensor] = []
    for state, hidden, gradients in zip(trial.states, entering, behind, strict=True):
        leaf = hidden.detach().requires_grad_()
        with torch.enable_grad(), _noted(trial, places) as seen:
            out = state.run(index, block, leaf)
        leaves = [leaf, *(seen[place].out for place in places)]
        by_draw = [torch.autograd.grad(out, leaves, g, retain_graph=True) for g in gradients]
        before.append(torch.stack([of_draw[0] for of_draw in by_draw]))
        for number, place in enumerate(places, start=1):
            note = seen[place]
            note.out = note.out.detach()
            note.gradients = torch.stack([of_draw[number] for of_draw in by_draw])
            notes[place].append(note)
    return notes, before


def _module(trial: CandidateEvaluator, site: Site) -> nn.Module:
    """Return what a level changes: an output projection, or experts with their router."""
    if site.kind is not Kind.EXPERTS:
        return projection(trial.model, site)
    path = architecture(trial.model).experts.rpartition(".")[0]
    return blocks(trial.model)[site.block].get_submodule(path)


def _norm(trial: CandidateEvaluator, site: Site) -> nn.Module | None:
    """Return the norm that reads what a site gives, before or behind the addition."""
    a = architecture(trial.model)
    own = {Kind.ATTENTION: a.attention_output_norm, Kind.FFN: a.ffn_output_norm}
    path = norm_behind(trial.model, site) or own.get(site.kind)
    return blocks(trial.model)[site.block].get_submodule(path) if path else None


@contextmanager
def _noted(trial: CandidateEvaluator, places: Sequence[int]) -> Generator[dict[int, _Note]]:
    """Note what the sites read and give while their block runs; only `out` is in the graph."""
    seen: dict[int, _Note] = {}

    def of_module(place: int):
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            given = out.detach()
            seen[place] = _Note(args[0].detach(), given, None, out, given)

        return hook

    def of_norm(place: int):
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen[place].normed, seen[place].out = args[0].detach(), out

        return hook

    with ExitStack() as hooks:
        for place in places:
            site = trial.sites[place]
            module, norm = _module(trial, site), _norm(trial, site)
            hooks.enter_context(module.register_forward_hook(of_module(place)))
            if norm is not None:
                hooks.enter_context(norm.register_forward_hook(of_norm(place)))
        yield seen


@torch.no_grad()
def _given(
    trial: CandidateEvaluator, place: int, level: int, notes: Sequence[_Note]
) -> list[Tensor]:
    """Return what a site gives to each batch at a level."""
    site, given = trial.sites[place], list[Tensor]()
    trial.install(place, level)
    module, norm = _module(trial, site), _norm(trial, site)  # a level may bring others
    for state, note in zip(trial.states, notes, strict=True):
        with computing(state.in_bfloat16, trial.model.device):
            out = module(note.x)
            if norm is not None and note.normed is not None:
                out = norm(note.normed + (out - note.given))
        given.append(out)
    trial.install(place, 0)
    return given


@torch.no_grad()
def _taken_over(
    trial: CandidateEvaluator, place: int, entering: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """Return what stands in for a site that is gone, of each batch."""
    folds = trial.levels.folds
    assert folds is not None
    writer, F = folds.writers[trial.sites[place]], folds[trial.sites[place]]
    read, given = list[Tensor](), list[Tensor]()

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        read.append(args[0])

    with opened(blocks(trial.model)[writer.block]) as block:
        hook = projection(trial.model, writer).register_forward_pre_hook(note)
        for state, hidden in zip(trial.states, entering[writer.block], strict=True):
            state.run(writer.block, block, hidden)
            x = read.pop()
            given.append(x @ F.to(x).T)
        hook.remove()
    return given


@torch.no_grad()
def _squares(trial: CandidateEvaluator, notes: Sequence[_Note], instead: Sequence[Tensor]) -> float:
    """Return the sum of (g . d)^2 over tokens, or rows of an encoder, and draws."""
    rows, total = architecture(trial.model).encoder, 0.0
    for state, note, out in zip(trial.states, notes, instead, strict=True):
        d = out.reshape(note.out.shape) - note.out  # opt's FFN works on [tokens, hidden]
        along = (note.gradients.float() * d.float()).sum(-1)
        along = along.reshape(len(along), len(state.batch.ids), -1)
        total += float((along.sum(-1) if rows else along).double().square().sum())
    return total
