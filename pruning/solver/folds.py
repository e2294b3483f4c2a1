"""Folds: what the projection in front of a sub-block takes over when the sub-block goes.

Nothing reads the stream between the two, so what is gone can be replaced by a linear map of what
that projection reads: its weight becomes W + F, with F x close to what the sub-block gave.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from pruning.calibration.calibration import Calibration
from pruning.calibration.crossed import crossed
from pruning.calibration.moment import Moment, Split
from pruning.calibration.moments import Moments
from pruning.data.batch import Batch
from pruning.models.gaps import writers
from pruning.models.loaded import LoadedModel
from pruning.models.sites import Site
from pruning.models.tensor_files import described, places
from pruning.solver.obs import damped_, energy, factored
from pruning.system.cache import Cache
from pruning.system.files import whole_file

PASSES = 1.0  # that all folds bring the text through the model
LEAST = 1e-6  # error of a fold: below it lies the rounding of its two parts

Matrix = Float[Tensor, "rows columns"]


def fold(moment: Moment, ridge: float, precision: torch.dtype = torch.float32) -> Matrix:
    """Return F = T (H + ridge diag(H))^-1, which minimises E|F x - y|^2 + ridge |F|^2_diag(H).

    T = E[y x^T] is the moment's target, y what is gone; zeros of an infinite ridge.
    """
    assert moment.target is not None
    T, H = moment.target.to(precision), moment.H
    if math.isinf(ridge):
        return torch.zeros_like(T)
    L = factored(lambda: damped_(H.to(precision, copy=True), ridge))
    return torch.cholesky_solve(T.T, L).T


def error(F: Matrix, held: Moment) -> float:
    """Return E|F x - y|^2 - E|y|^2 on the held-out tokens; infinite where it is not finite."""
    assert held.target is not None
    left = energy(F, held.H) - 2 * float(torch.sum(held.target * F))
    return left if math.isfinite(left) else math.inf


def best_fold(split: Split, ridges: Sequence[float]) -> tuple[Matrix, float, float]:
    """Return the fold of the tokens to solve with that has the least held-out error.

    Beside it its ridge, of equal ones the largest, and its `error`.
    """
    best: tuple[Matrix, float, float] | None = None
    for ridge in reversed(ridges):
        F = fold(split.fit, ridge)
        left = error(F, split.held)
        if best is None or left < best[2]:
            best = F, ridge, left
    assert best is not None, "there are ridges"
    return best


class Folds:
    """The fold of every sub-block that may go, each behind the dense model; on disk, for trials.

    As levels that are tried, they are solved without the held-out tokens, which searches judge by;
    these have a part in the ridge alone, and in the error.
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
        moments: Moments,
        cache: Cache,
    ) -> "Folds":
        """Solve the folds of a model from its moments, or find them in the cache."""
        by_site = writers(dense.model)
        key = {"version": 2, "moments": moments.identity, "ridges": [*ridges]}

        def fill(directory: Path) -> None:
            cls(directory, by_site)._fill(dense, batches, options, ridges, moments)

        columns = sum(writer.columns for writer in by_site.values())
        size = 2 * dense.model.config.hidden_size * columns  # bfloat16
        return cls(cache.stage("folds", key, cache.in_files(key, fill), size), by_site)

    def __getitem__(self, site: Site) -> Matrix:
        """Read F, of [hidden size, columns of the writer], of a site that something takes over."""
        return places(self._file(site.block))[site.name].read()

    def error(self, site: Site) -> float:
        """Read E|F x - y|^2 / E|y|^2, on the held-out tokens, of such a site."""
        return float(described(self._file(site.block))[1][site.name])

    @torch.no_grad()
    def _fill(
        self,
        dense: LoadedModel,
        batches: list[Batch],
        options: Calibration,
        ridges: Sequence[float],
        moments: Moments,
    ) -> None:
        """Solve the folds of the blocks that have no file."""
        device = dense.model.device
        fast = options.precision.is_bfloat16(device)
        given = dense.model, batches, options.weight, self.writers, fast
        for index, block in enumerate(crossed(*given, done=self.has)):
            if self.has(index):
                continue
            folds, errors = dict[Site, Matrix](), dict[Site, float]()
            for site, cross in block.items():
                split = moments.split(self.writers[site], device)
                split.fit.target, split.held.target = cross.fit, cross.held
                folds[site], _, left = best_fold(split, ridges)
                errors[site] = max(LEAST, 1 + left / max(cross.energy, 1e-30))
            self._write(index, folds, errors)
        moments.release()

    def _write(self, index: int, folds: dict[Site, Matrix], errors: dict[Site, float]) -> None:
        """Write the folds of a block, in bfloat16: they are for losses alone."""
        tensors = {site.name: F.bfloat16().contiguous().cpu() for site, F in folds.items()}
        rest = {site.name: repr(error) for site, error in errors.items()}
        with whole_file(self._file(index)) as partial:
            save_file(tensors, partial, metadata=rest)

    def has(self, index: int) -> bool:
        """Tell whether the folds of block `index` are written."""
        return self._file(index).exists()

    def _file(self, index: int) -> Path:
        return self.directory / f"block-{index:03}.safetensors"
