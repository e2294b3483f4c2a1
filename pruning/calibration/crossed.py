"""Moments between what one site gives and what another reads, one block in memory at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from pruning.calibration.calibration import Weight
from pruning.calibration.passes import inputs_of, inputs_of_norms, outputs_of, token_weights
from pruning.data.batch import Batch
from pruning.models.blockwise import embed
from pruning.models.sites import Site, a_norm, blocks, sub_block
from pruning.models.streamed import opened
from pruning.system.progress import track


@dataclass
class Crossed:
    """Means over tokens of what one site gives, y, with its bias, and another reads, x."""

    fit: Float[Tensor, "rows columns"]  # E[y x^T]
    held: Float[Tensor, "rows columns"]  # the same of the held-out tokens
    energy: float  # E|y|^2 of these


class _Sums:
    """The running sums of w y x^T, of tokens to solve with and of held-out ones, and of w |y|^2."""

    def __init__(self, rows: int, columns: int, device: torch.device):
        self.products = torch.zeros(2, rows, columns, device=device)
        self.weights, self.energy = [0.0, 0.0], 0.0

    def add_(
        self,
        Y: Float[Tensor, "tokens rows"],
        X: Float[Tensor, "tokens columns"],
        w: Float[Tensor, " tokens"],
        held_out: bool,
    ) -> None:
        """Add tokens with weights w >= 0."""
        Y = Y.float()
        self.products[int(held_out)].addmm_((Y * w[:, None]).T, X.float())
        self.weights[held_out] += float(w.double().sum())
        if held_out:
            self.energy += float(w.double() @ Y.square().sum(1).double())

    def mean(self) -> Crossed:
        """Return the weighted means; the sums are used up."""
        fit, held = (max(weight, 1e-30) for weight in self.weights)
        return Crossed(self.products[0].div_(fit), self.products[1].div_(held), self.energy / held)


@torch.no_grad()
def crossed(
    model: PreTrainedModel,
    batches: list[Batch],
    weight: Weight,
    readers: dict[Site, Site],
    in_bfloat16: bool = False,
    done: Callable[[int], bool] = lambda index: False,
) -> Iterator[dict[Site, Crossed]]:
    """Yield the moments of the sites of one block after the other with what their readers read.

    `readers` has, for a site, another one that stands in front of it or beside it: of a fold, the
    projection that takes the site over. Tokens count as they do in the reader's own moments, so
    that both go together. It is one pass of the text. Beyond the model, memory holds the hidden
    states of every batch, and what a reader reads until the last of its sites has given its part.
    Of blocks that are `done` there is nothing.
    """
    states = [embed(model, batch, in_bfloat16) for batch in batches]
    readers = {site: reader for site, reader in readers.items() if not done(site.block)}
    last = dict.fromkeys(readers.values(), 0)  # block up to which a reader's inputs are needed
    for site, reader in readers.items():
        last[reader] = max(last[reader], site.block)
    read: list[dict[Site, tuple[Tensor, Tensor]]] = [{} for _ in states]  # inputs, and weights
    for index in track(range(len(blocks(model))), "folds: blocks"):
        block, norm = blocks(model)[index], a_norm(model, index)
        mine = {site: reader for site, reader in readers.items() if site.block == index}
        here = [reader for reader in last if reader.block == index]
        sums = {
            site: _Sums(model.config.hidden_size, reader.columns, model.device)
            for site, reader in mine.items()
        }
        with (
            opened(block),
            inputs_of(model, here, stop=False) as inputs,
            inputs_of_norms(model, index) as divided,
            outputs_of(model, [*mine]) as given,
        ):
            for state, known in zip(states, read, strict=True):
                inputs.clear()
                leaving = state.advance(index, block)
                w = token_weights(norm, state.batch, divided, leaving, weight)
                for reader in here:
                    X = inputs[reader][0].flatten(0, -2)
                    known[reader] = X.to(leaving.device), w[sub_block(model, reader)].flatten()
                for site, reader in mine.items():
                    X, own = (one.to(model.device) for one in known[reader])
                    sums[site].add_(given[site], X, own, state.batch.held_out)
                for reader in [reader for reader in known if last[reader] <= index]:
                    del known[reader]
        yield {site: sums.pop(site).mean() for site in mine}
