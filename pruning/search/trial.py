"""Measure candidates in place: the calibration loss of a model with some levels installed."""

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.data.batch import Batch
from pruning.models.blockwise import embed, few, predict
from pruning.models.modeling_pruned import Zero, replace_
from pruning.models.sites import (
    Kind,
    Site,
    architecture,
    blocks,
    norm_behind,
    projection,
    set_weight_,
    weight,
)
from pruning.models.streamed import is_closed, opened
from pruning.search.options import Objective
from pruning.search.text import draw_predictions
from pruning.solver.levels import Levels, dear
from pruning.system.files import to_json, write_text
from pruning.system.precision import computing
from pruning.system.progress import track


@dataclass
class _Dense:
    """What the dense model says of a batch."""

    p: Float[Tensor, "predictions classes"]
    log_p: Float[Tensor, "predictions classes"]

    @classmethod
    def from_logits(cls, logits: Float[Tensor, "predictions classes"]) -> "_Dense":
        """Turn logits into probabilities."""
        log_p = logits.float().log_softmax(-1)
        return cls(log_p.exp(), log_p)

    def divergence(self, logits: Float[Tensor, "predictions classes"]) -> float:
        """Return sum_t KL(p_t || softmax(logits_t)) in nats.

        As sum p (log p - log q): small terms where the two agree, so that rounding is small too.
        """
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for p, log_p, z in few(self.p, self.log_p, logits):
            difference = log_p - z.float().log_softmax(-1)
            total += torch.bmm(p[:, None], difference[:, :, None]).double().sum()
        return float(total)


@dataclass
class _Numbers:
    """What the dense model of a regression says of a batch: one number a row."""

    z: Float[Tensor, "predictions 1"]

    def divergence(self, logits: Float[Tensor, "predictions 1"]) -> float:
        """Return the sum of squared differences."""
        return float((logits.float() - self.z).double().square().sum())


class CandidateEvaluator:
    """Swaps output projections in and out of the dense model; copies nothing else of it.

    Leave it as a context, so that the dense weights are back whatever happens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        levels: Levels,
        batches: list[Batch],
        objective: Objective,
        in_bfloat16: bool = False,
        predictions: int | None = None,
    ):
        if objective is Objective.task and architecture(model).encoder:
            raise ValueError("search.objective=task predicts the next token: for an encoder use kl")
        self.model, self.levels, self.objective = model, levels, objective
        self.in_bfloat16 = in_bfloat16  # the products of all passes
        self.compared = draw_predictions(batches, predictions)
        self.sites = list(levels)
        self.states = [embed(model, batch, in_bfloat16) for batch in batches]
        self.installed: list[tuple[int, list[int]]] = [(0, [])] * len(self.sites)
        self.wanted = [0] * len(self.sites)
        self.evaluations = 0  # of the objective, whole model or part of it
        self.original: dict[Site, tuple[Tensor, nn.Parameter | None, nn.Module | None]] = {}
        self.routed: dict[Site, nn.Module] = {}  # routers with their experts, as they were

    def __enter__(self) -> "CandidateEvaluator":
        return self

    def __exit__(self, *_: object) -> None:
        for index in range(len(self.sites)):
            self.install(index, 0)

    @contextmanager
    def block(self, index: int) -> Generator[nn.Module]:
        """Give a block with the levels that are wanted; it is dense again once it is closed."""
        block, mine = blocks(self.model)[index], self.places[index]
        closes = is_closed(block)
        with opened(block):
            for place in mine:
                self.install(place, self.wanted[place], self._taken_over(place))
            try:
                yield block
            finally:
                if closes:
                    for place in mine:
                        self.install(place, 0)
                        self.original.pop(self.sites[place], None)

    @cached_property
    def places(self) -> list[list[int]]:
        """Return the places of each block's sites."""
        return [
            [place for place, site in enumerate(self.sites) if site.block == index]
            for index in range(len(blocks(self.model)))
        ]

    @cached_property
    def writers(self) -> list[Site | None]:
        """Return what takes each place over where it is gone, if anything does."""
        folds = self.levels.folds
        return [folds.writers.get(site) if folds else None for site in self.sites]

    @cached_property
    def takes_over(self) -> list[list[int]]:
        """Return the places that each place takes over where they are gone."""
        writers = [*enumerate(self.writers)]
        return [[i for i, writer in writers if writer == site] for site in self.sites]

    def _taken_over(self, place: int) -> list[int]:
        """Return the places that a place takes over now."""
        return [i for i in self.takes_over[place] if self.is_gone(i, self.wanted[i])]

    def is_gone(self, place: int, level: int) -> bool:
        """Tell whether nothing is left of a site at a level."""
        return level > 0 and not self.levels[self.sites[place]].keeps[level].any()

    @cached_property
    def dense(self) -> list[_Dense | _Numbers]:
        """Return what the dense model says, as it is when this is asked for first."""
        assert not any(self.wanted)
        logits = [*self._logits(0, [state.hidden for state in self.states])]
        if not all(z.isfinite().all() for z in logits):
            dtype = str(self.model.dtype).removeprefix("torch.")
            raise ValueError(
                f"model.dtype={dtype}: what the dense model says "
                "of the held-out calibration text is not finite, so that no search can compare "
                "with it: give model.dtype=float32, or other calibration text"
            )
        return [_Numbers(z.float()) if z.shape[1] == 1 else _Dense.from_logits(z) for z in logits]

    @torch.no_grad()
    def evaluate(self, choice: Sequence[int]) -> float:
        """Return the calibration loss of one level per site, nats per token; finite or infinite."""
        assert self.dense  # before anything is installed
        self.wanted = list(choice)
        return self._loss(0, [state.hidden for state in self.states])

    @torch.no_grad()
    def sensitivities(
        self,
        anchors: Sequence[Sequence[int]],
        scratch: Path | None = None,
    ) -> list[dict[int, float]]:
        """Measure each site's loss increase at its anchor levels, all other sites dense.

        The blocks before the first that changes are not run again: the hidden states go along.
        Losses of a block are kept in `scratch`, and are not measured again where an earlier start
        has done so.
        """
        dense = self.evaluate([0] * len(self.sites))
        hidden = [state.hidden for state in self.states]
        entering = dict[int, list[Tensor]]()  # blocks from which on passes may start
        losses: list[dict[int, float]] = [{} for _ in self.sites]
        for index in track(range(len(blocks(self.model))), "search: sensitivities"):
            entering[index] = hidden
            kept = None if scratch is None else scratch / f"{index:04}.json"
            with self.block(index):
                if kept is not None and kept.exists():
                    for i, row in json.loads(kept.read_text()).items():
                        losses[int(i)] = {int(level): dear(loss) for level, loss in row.items()}
                else:
                    for i in self.places[index]:
                        losses[i] = self._measured(i, anchors[i], entering, dense)
                    if kept is not None:
                        rows = {i: losses[i] for i in self.places[index]}
                        write_text(to_json(rows), kept)
                hidden = self.behind(index, hidden)
            rest = [i for ids in self.places[index + 1 :] for i in ids]
            later = [self.first_changed(i, level) for i in rest for level in anchors[i]]
            for passed in [block for block in entering if block < min(later, default=0)]:
                del entering[passed]
        return losses

    def _measured(
        self, place: int, levels: Sequence[int], entering: dict[int, list[Tensor]], dense: float
    ) -> dict[int, float]:
        """Return the loss increase of each level of a site, given what enters blocks."""
        increases = dict[int, float]()
        for level in levels:
            self.wanted[place], start = level, self.first_changed(place, level)
            increases[level] = max(0.0, self._loss(start, entering[start]) - dense)
        self.wanted[place] = 0
        return increases

    def writer(self, place: int, level: int) -> Site | None:
        """Return what takes a site over at a level, if anything does."""
        return self.writers[place] if self.is_gone(place, level) else None

    def first_changed(self, place: int, level: int) -> int:
        """Return the first block that changes with a site: its own, or that of what takes over."""
        return (self.writer(place, level) or self.sites[place]).block

    @torch.no_grad()
    def install(self, index: int, level: int, taken_over: Sequence[int] = ()) -> None:
        """Let a site, whose block is open, have the weights of a level; 0 is dense.

        It takes over the sites at some other places, which are gone.
        """
        if self.installed[index] == (level, [*taken_over]):
            return
        site = self.sites[index]
        self.installed[index] = level, [*taken_over]
        if site.kind is Kind.EXPERTS:
            self._install_experts(site, level)
            return
        module: Any = projection(self.model, site)
        norm = norm_behind(self.model, site)
        block = blocks(self.model)[site.block]
        if site not in self.original:
            own = block.get_submodule(norm) if norm else None
            self.original[site] = weight(module).clone(), module.bias, own
        dense, b, own = self.original[site]
        gone, installed, shift = self.is_gone(index, level), dense, None
        if norm and own:
            replace_(block, norm, nn.Identity() if gone else own)
        if level:
            installed, shift = self.levels.trial_weight(site, level, dense)
            if gone and b is not None:
                shift = -b
        if taken_over:
            assert self.levels.folds is not None
            folds = (self.levels.folds[self.sites[i]] for i in taken_over)
            installed = sum((fold.to(dense) for fold in folds), installed)
        set_weight_(module, installed)
        module.bias = b if shift is None else _parameter(shift if b is None else b + shift)

    def _install_experts(self, site: Site, level: int) -> None:
        block = blocks(self.model)[site.block]
        path = architecture(self.model).experts.rpartition(".")[0]
        own = self.routed.setdefault(site, block.get_submodule(path))
        replace_(block, path, own)  # what a level is cut from
        if level:
            gone = not self.levels[site].keeps[level].any()
            left = Zero() if gone else self.levels.trial_experts(self.model, site, level)
            replace_(block, path, left)

    def _logits(
        self, start: int, entering: Sequence[Tensor]
    ) -> Iterator[Float[Tensor, "predictions classes"]]:
        """Run the blocks from `start` on all batches, and the head on one after the other."""
        hidden = [*entering]
        for index in range(start, len(blocks(self.model))):
            hidden = self.behind(index, hidden)
        for state, compared, left in zip(self.states, self.compared, hidden, strict=True):
            with torch.no_grad(), computing(state.in_bfloat16, self.model.device):
                logits = predict(self.model, compared, left)
            yield logits

    def behind(self, index: int, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return what a block with the levels that are wanted makes of each batch."""
        with self.block(index) as block:
            pairs = zip(self.states, hidden, strict=True)
            return [state.run(index, block, entering) for state, entering in pairs]

    def _loss(self, start: int, hidden: Sequence[Tensor]) -> float:
        """Return the objective in nats per prediction, with `hidden` entering block `start`.

        Infinity where it is not finite.
        """
        self.evaluations += 1
        total, predictions = 0.0, 0
        given = self.states, self.compared, self.dense, self._logits(start, hidden)
        for state, compared, dense, z in zip(*given, strict=True):
            if self.objective is Objective.kl:
                loss, count = dense.divergence(z), len(z)
            else:
                chosen, targets = (t.to(z.device) for t in _next_tokens(state.batch, compared))
                loss = float(F.cross_entropy(z[chosen].float(), targets, reduction="sum"))
                count = len(targets)
            total, predictions = total + loss, predictions + count
        return dear(total / predictions)


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _next_tokens(batch: Batch, compared: Batch) -> tuple[Tensor, Tensor]:
    """Say which of the compared tokens are followed by another, and by which."""
    real, judged = batch.mask.bool(), compared.mask.bool()
    followed = torch.zeros_like(real)
    followed[:, :-1] = judged[:, :-1] & real[:, 1:]
    return followed[judged], batch.ids.roll(-1, 1)[followed]
