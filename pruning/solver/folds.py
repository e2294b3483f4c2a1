"""Folds: what the projection in front of a sub-block takes over when the sub-block goes.

Nothing reads the stream between the two, so what is gone can be replaced by a linear map of what
that projection reads: its weight becomes W + F, with F x close to what the sub-block gave.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor
from transformers import PreTrainedModel

from pruning.calibration.calibration import Calibration
from pruning.calibration.moment import Moment, Split
from pruning.calibration.moments import passes_key
from pruning.calibration.passes import Outputs, Reading, block_moments, outputs
from pruning.data.batch import Batch
from pruning.models.blockwise import State, advance, embed
from pruning.models.gaps import writers
from pruning.models.loaded import LoadedModel
from pruning.models.sites import Site, blocks, projection, weight
from pruning.models.streamed import opened
from pruning.models.tensor_files import places
from pruning.solver.obs import least_squares
from pruning.solver.ordering import HeldOut, choose_ridge
from pruning.system.cache import Cache
from pruning.system.files import whole_file
from pruning.system.progress import track

PASSES = 2.0  # that all folds bring the text through the model, about

Matrix = Float[Tensor, "rows columns"]


def given_by(model: PreTrainedModel, index: int, states: list[State], sites: list[Site]) -> Outputs:
    """Take every state behind block `index`; return what its sites gave, with their biases."""
    with opened(blocks(model)[index]):
        given = outputs(model, index, states, sites)
        for site, batches in given.items():
            module: Any = projection(model, site)
            bias = getattr(module, "bias", None)  # experts have none
            given[site] = [
                one.float() if bias is None else one.float() + bias.to(one.device)
                for one in batches
            ]
    return given


def ridge_of(site: Site, W: Matrix, split: Split, ridges: Sequence[float]) -> float:
    """Return the ridge of the least held-out error of a projection that takes over the targets.

    It goes on giving what it does: these become targets too.
    """
    own = W.to(split.fit.H.dtype)
    for moment in (split.fit, split.held):
        assert moment.target is not None
        moment.target += own @ moment.H
    every = torch.ones(site.units, dtype=torch.bool)
    return choose_ridge(HeldOut(site, own, split), [every], ridges)


def taken_over(W: Matrix, moment: Moment, ridge: float) -> Matrix:
    """Return the weight that also gives the targets, solved in float64."""
    assert moment.target is not None
    every = torch.ones(W.shape[1], dtype=torch.bool, device=W.device)
    given = W.double(), moment.H.double(), every, ridge, moment.target.double()
    return least_squares(*given).to(W.dtype)


class Folds:
    """The fold of every sub-block that may go, each behind the dense model; on disk, for trials.

    As levels that are tried, they are solved without the held-out tokens, which searches judge by;
    these have a part in the ridge alone.
    """

    def __init__(self, directory: Path, writers: dict[Site, Site]):
        self.directory, self.identity = directory, directory.name
        self.writers = writers  # what takes over each site; none for a site that nothing does

    @classmethod
    def collect(
        cls,
        dense: LoadedModel,
        batches: list[Batch],
        options: Calibration,
        ridges: Sequence[float],
        cache: Cache,
    ) -> "Folds":
        """Solve the folds of a model, or find them in the cache."""
        model, by_site = dense.model, writers(dense.model)
        key = {"version": 1, **passes_key(dense, batches, options), "ridges": [*ridges]}

        def fill(directory: Path) -> None:
            cls(directory, by_site)._fill(model, batches, options, ridges)

        columns = sum(writer.columns for writer in by_site.values())
        size = 2 * model.config.hidden_size * columns  # bfloat16
        return cls(cache.stage("folds", key, cache.in_files(key, fill), size), by_site)

    def __getitem__(self, site: Site) -> Matrix:
        """Read F, of [hidden size, columns of the writer], of a site that something takes over."""
        return places(self._file(site.block))[site.name].read()

    @torch.no_grad()
    def _fill(
        self,
        model: PreTrainedModel,
        batches: list[Batch],
        options: Calibration,
        ridges: Sequence[float],
    ) -> None:
        """Solve the folds of the blocks that have no file."""
        in_bfloat16 = options.precision.is_bfloat16(model.device)
        ahead, behind = ([embed(model, batch, in_bfloat16) for batch in batches] for _ in range(2))
        at = 0  # the block that `behind` is in front of
        for index in track(range(len(blocks(model))), "folds: blocks"):
            if self._file(index).exists():
                advance(ahead, index, blocks(model)[index])
                continue
            mine = {site: w for site, w in self.writers.items() if site.block == index}
            folds: dict[str, Matrix] = {}
            for site, given in given_by(model, index, ahead, [*mine]).items():
                writer = mine[site]
                for passed in range(at, writer.block):
                    advance(behind, passed, blocks(model)[passed])
                at = writer.block
                reading = Reading([writer], options.weight, {writer: given})
                with opened(blocks(model)[at]):
                    split = block_moments(model, at, behind, reading, advance=False)[writer]
                    assert isinstance(split, Split), "a writer is one projection"
                    W = weight(projection(model, writer))
                    ridge = ridge_of(writer, W, split, ridges)
                    folds[site.name] = taken_over(W, split.fit, ridge) - W
            self._write(index, folds)

    def _write(self, index: int, folds: dict[str, Matrix]) -> None:
        """Write the folds of a block, in bfloat16: they are for losses alone."""
        with whole_file(self._file(index)) as partial:
            save_file({name: F.bfloat16().cpu() for name, F in folds.items()}, partial)

    def _file(self, index: int) -> Path:
        return self.directory / f"block-{index:03}.safetensors"
