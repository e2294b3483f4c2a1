"""The levels of every site: what is kept at each, what it costs in loss, and its weights."""

import inspect
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.calibration.moment import Moment, Split
from pruning.calibration.moments import Moments
from pruning.latency.table import LatencyTable
from pruning.models.shape import Shape, from_plain
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import (
    Allocation,
    Kind,
    Site,
    add_bias_,
    blocks,
    give_output_biases_,
    projection,
    set_weight_,
    weight,
)
from pruning.models.streamed import is_streamed, opened, rewritten, written_before
from pruning.solver.experts import ExpertSite, expert_levels
from pruning.solver.folds import Folds
from pruning.solver.obs import least_squares
from pruning.system.cache import Cache
from pruning.system.files import to_json, whole_directory
from pruning.system.progress import track

Read = Callable[[Site, torch.device], Moment]  # onto a device


def dear(loss: float | None) -> float:
    """Return a loss, infinity for one that is not finite: what overflows is never the better."""
    return loss if loss is not None and math.isfinite(loss) else math.inf


def foreign_code(kind: type) -> list[str]:
    """Return the source of a class and its bases from elsewhere: no version stands for it."""
    ours = {"pruning", *sys.stdlib_module_names}
    foreign = [one for one in kind.__mro__ if one.__module__.partition(".")[0] not in ours]
    try:
        return [inspect.getsource(one) for one in foreign]
    except (OSError, TypeError):  # typed at a prompt
        return [f"{one.__module__}.{one.__qualname__}" for one in foreign]


@dataclass
class SiteLevels:
    """The levels of one site, dense first."""

    shapes: list[Shape]
    keeps: Bool[Tensor, "levels units"]
    loss: list[float]  # held-out relative output error, 0 dense and 1 gone (before any fold)
    # of the weight update, chosen by held-out error; of experts a list, one of each
    ridge: float | list[float]
    score: str  # the score that ordered the units
    bias: bool = False  # what removed columns gave on average stays, as a bias

    def __post_init__(self) -> None:
        self.loss = [0.0, *map(dear, self.loss[1:])]


@runtime_checkable
class Solves(Protocol):
    """A dataclass with the rule of a paper: where it cuts, and the levels of one such place."""

    def sites(self, model: PreTrainedModel) -> list[Site]:
        """List where it removes something."""
        ...

    def site_levels(
        self, site: Site, W: Tensor, split: Split, shapes: Sequence[Shape]
    ) -> SiteLevels:
        """Return the levels of one site at the given shapes."""
        ...

    def expert_scores(self, given: ExpertSite) -> Tensor:
        """Return what every expert of a block is worth; the least goes first."""
        ...


class Levels(Mapping[Site, SiteLevels]):
    """The levels of all sites; weights are solved from the moments when they are asked for."""

    def __init__(self, by_site: dict[Site, SiteLevels], moments: Moments, identity: str = ""):
        self._of, self._moments, self.identity = by_site, moments, identity
        self.folds: Folds | None = None  # that take over what is gone, where something does

    @classmethod
    def from_moments(
        cls,
        model: PreTrainedModel,
        moments: Moments,
        method: Solves,
        table: LatencyTable,
        cache: Cache,
    ) -> "Levels":
        """Solve the levels of every site of a dense model, or find them in the cache."""
        prunable = method.sites(model)

        def build(directory: Path) -> None:
            by_site: dict[Site, SiteLevels] = {}
            kept = cache.checkpoints(key)  # of blocks that an earlier start has finished
            of_blocks = groupby(track(prunable, "levels: sites"), key=lambda site: site.block)
            for index, sites in ((index, list(sites)) for index, sites in of_blocks):
                finished = kept / f"{index:04}"
                if not finished.exists():
                    solved = _solved(model, sites, moments, method, table)
                    with whole_directory(finished) as made:
                        cls(solved, moments).write(made)
                by_site |= cls.read(finished, sites, moments)
            moments.release()
            cls(by_site, moments).write(directory)
            shutil.rmtree(kept, ignore_errors=True)

        shapes = [[level.plain for level in table.levels(site)] for site in prunable]
        # not its name: uniform_ffn has the levels of ziplm
        settings = {"kind": type(method).__name__, **asdict(method), "name": None}  # type: ignore[call-overload]
        settings.pop("compensate", None)  # done with the levels that were chosen
        if code := foreign_code(type(method)):
            settings["code"] = code
        key = {"version": 4, "moments": moments.identity, "method": settings, "shapes": shapes}
        entry = cache.stage("levels", key, build)
        return cls.read(entry, prunable, moments)

    def drafts(self, dense: PreTrainedModel) -> bool:
        """Tell whether models that are timed have any weights, since cutting takes long."""
        return is_streamed(dense)

    def __getitem__(self, site: Site) -> SiteLevels:
        return self._of[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def allocation(self, choice: Sequence[int]) -> Allocation:
        """Return what a choice of one level per site keeps."""
        pairs = zip(self._of.items(), choice, strict=True)
        return {site: levels.keeps[level] for (site, levels), level in pairs}

    @torch.no_grad()
    def cut(
        self, dense: PreTrainedModel, choice: Sequence[int]
    ) -> tuple[PreTrainedModel, Allocation]:
        """Shrink a copy of the dense model, and solve the weights of the chosen levels."""
        pruned = copy_sharing_weights(dense)
        if any(self._of[site].bias and level for site, level in zip(self, choice, strict=True)):
            give_output_biases_(pruned)
        for index, levels in self._by_block(choice).items():
            if written_before(dense, pruned, index, key := self._key(levels)) is not None:
                self._resize_(pruned, levels)
                continue
            with rewritten(dense, pruned, index, key):
                self._resize_(pruned, levels)
                for site, level in levels.items():
                    self._solve_(dense, pruned, site, level)
        self._moments.release()
        return pruned, self.allocation(choice)

    def _resize_(self, pruned: PreTrainedModel, levels: dict[Site, int]) -> None:
        """Give sites the shapes of their levels."""
        shrink_(pruned, {site: self._of[site].keeps[level] for site, level in levels.items()})

    def _by_block(self, choice: Sequence[int]) -> dict[int, dict[Site, int]]:
        """Return the level of every site that loses something, by block."""
        levels: dict[int, dict[Site, int]] = {}
        for site, level in zip(self, choice, strict=True):
            if not self._of[site].keeps[level].all():
                levels.setdefault(site.block, {})[site] = level
        return levels

    def _key(self, levels: dict[Site, int]) -> list[Any]:
        """Return all that decides what becomes of the sites of a block."""
        return [self.identity, {site.name: level for site, level in levels.items()}]

    def _solve_(
        self, dense: PreTrainedModel, pruned: PreTrainedModel, site: Site, level: int
    ) -> None:
        """Give a site that was cut the weights of its level."""
        if not self._of[site].keeps[level].any():
            return
        if site.kind is Kind.EXPERTS:
            given, ridges = self._experts(dense, site, level)
            keep = self._of[site].keeps[level].view(site.groups, -1)
            given.solve_(projection(pruned, site), keep, ridges, fit=False)
            return
        W = weight(projection(dense, site))
        set_weight_(projection(pruned, site), self.kept_weight(site, level, W))
        if (shift := self.kept_bias(site, level, W)) is not None:
            add_bias_(pruned, site, shift)

    def timing_model(
        self, dense: PreTrainedModel, choice: Sequence[int]
    ) -> tuple[PreTrainedModel, Allocation]:
        """Return a model of the same shapes, to time, with the weights of the levels or any."""
        if not self.drafts(dense):
            return self.cut(dense, choice)
        pruned = copy_sharing_weights(dense)
        for levels in self._by_block(choice).values():
            self._resize_(pruned, levels)
        return pruned, self.allocation(choice)

    def kept_weight(
        self, site: Site, level: int, W: Float[Tensor, "rows columns"]
    ) -> Float[Tensor, "rows kept"]:
        """Solve the weights of a level for dense W, from the moments of all calibration tokens."""
        return self._solve(site, level, W, self._moments.all)

    def kept_bias(
        self, site: Site, level: int, W: Float[Tensor, "rows columns"]
    ) -> Float[Tensor, " rows"] | None:
        """Return what a level adds to the bias of the output projection, if anything."""
        return self._shift(site, level, W, self._moments.all)

    def trial_weight(
        self, site: Site, level: int, W: Float[Tensor, "rows columns"]
    ) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, " rows"] | None]:
        """Return the weights of a level with zeros in the removed columns, and the added bias.

        Solved without the held-out tokens, which searches judge by; these have a part only in the
        order in which units leave, and in the choice of the ridge.
        """
        fit = self._moments.fit
        full = torch.zeros_like(W)
        full[:, self.columns(site, level).to(W.device)] = self._solve(site, level, W, fit)
        return full, self._shift(site, level, W, fit)

    def trial_experts(self, dense: PreTrainedModel, site: Site, level: int) -> nn.Module:
        """Return router and experts of a level, solved as `trial_weight` solves."""
        given, ridges = self._experts(dense, site, level)
        return given.cut(self._of[site].keeps[level].view(site.groups, -1), ridges, fit=True)

    def _experts(
        self, dense: PreTrainedModel, site: Site, level: int
    ) -> tuple[ExpertSite, list[float]]:
        ridges = self._of[site].ridge
        assert isinstance(ridges, list)
        return ExpertSite(dense, site, self._moments), ridges

    def _solve(self, site: Site, level: int, W: Tensor, read: Read) -> Tensor:
        keep = self.columns(site, level).to(W.device)
        ridge = self._of[site].ridge
        assert isinstance(ridge, float), "experts have one each"
        if math.isinf(ridge):  # what is kept stays as it is, whatever the moments
            return W[:, keep]
        return least_squares(W.double(), read(site, W.device).H, keep, ridge).to(W.dtype)

    def _shift(self, site: Site, level: int, W: Tensor, read: Read) -> Tensor | None:
        keep = self.columns(site, level).to(W.device)
        if not self._of[site].bias or not keep.any():
            return None
        return W[:, ~keep] @ read(site, W.device).mean.to(W)[~keep]

    def columns(self, site: Site, level: int) -> Bool[Tensor, " columns"]:
        """Return the kept columns of a level."""
        return self._of[site].keeps[level].repeat_interleave(site.width)

    def write(self, directory: Path) -> None:
        """Write losses as JSON and kept units as safetensors."""
        keeps = {site.name: levels.keeps for site, levels in self._of.items()}
        save_file(keeps, directory / "keeps.safetensors")
        rest = {
            site.name: {
                "shapes": [shape.plain for shape in levels.shapes],
                "loss": levels.loss,
                "ridge": levels.ridge,
                "score": levels.score,
                "bias": levels.bias,
            }
            for site, levels in self._of.items()
        }
        (directory / "levels.json").write_text(to_json(rest, indent=1))

    @classmethod
    def read(cls, directory: Path, sites: list[Site], moments: Moments) -> "Levels":
        """Read the levels that `write` wrote."""
        keeps = load_file(directory / "keeps.safetensors")
        rest = json.loads((directory / "levels.json").read_text())
        by_site: dict[Site, SiteLevels] = {}
        for site in sites:
            fields = rest[site.name]
            fields["loss"] = [dear(loss) for loss in fields["loss"]]
            fields["ridge"] = _ridge(fields["ridge"])
            fields["shapes"] = [from_plain(plain) for plain in fields["shapes"]]
            by_site[site] = SiteLevels(keeps=keeps[site.name], **fields)
        return cls(by_site, moments, directory.name)


def _solved(
    model: PreTrainedModel,
    sites: Sequence[Site],
    moments: Moments,
    method: Solves,
    table: LatencyTable,
) -> dict[Site, SiteLevels]:
    """Return the levels of the sites of one block."""
    solved: dict[Site, SiteLevels] = {}
    with opened(blocks(model)[sites[0].block]):
        for site in sites:
            shapes = table.levels(site)
            if site.kind is Kind.EXPERTS:
                made = expert_levels(ExpertSite(model, site, moments), method, shapes)
                rest = made.loss, made.ridges, made.score
                solved[site] = SiteLevels(shapes, made.keeps, *rest)
                continue
            W = weight(projection(model, site)).detach()
            split = moments.split(site, W.device)
            solved[site] = method.site_levels(site, W, split, shapes)
            del split  # the next site's take its place
    return solved


def _ridge(stored: float | list[float | None] | None) -> float | list[float]:
    """Return a ridge as it was, infinite where a file has none."""
    return [dear(each) for each in stored] if isinstance(stored, list) else dear(stored)
