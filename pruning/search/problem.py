"""What a search sees: losses and milliseconds per level, and a way to measure whole candidates."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pruning.latency.table import LatencyTable
from pruning.models.shape import Shape
from pruning.models.sites import Site
from pruning.search.fisher import fisher_losses
from pruning.search.knapsack import Row, knapsack
from pruning.search.trial import CandidateEvaluator
from pruning.solver.folds import Folds
from pruning.solver.levels import Levels, dear
from pruning.system.cache import Cache
from pruning.system.files import to_json


@dataclass
class Problem:
    """Per site, shape, prior loss, milliseconds and kept share of each level, dense first."""

    sites: list[Site]
    shapes: list[list[Shape]]
    loss: list[Row]  # held-out relative output errors
    ms: list[Row]
    kept: list[Row]
    rest: float  # ms that no level changes
    trial: CandidateEvaluator | None  # for searches that measure
    cache: Cache
    identity: dict[str, Any]  # of everything that sensitivities depend on
    folds: Folds | None = None  # that take over what is gone
    seed: int = 0  # of the candidates that a search draws
    history: list[dict[str, float]] = field(
        default_factory=list[dict[str, float]]
    )  # of what `evaluate` measured

    @property
    def with_folds(self) -> dict[str, str]:
        """Return what names the folds, if there are any."""
        return {} if self.folds is None else {"folds": self.folds.identity}

    def total(self, choice: Sequence[int]) -> float:
        """Return the predicted end-to-end milliseconds of a choice."""
        return self.rest + sum(row[level] for row, level in zip(self.ms, choice, strict=True))

    def solve(self, loss: Sequence[Row], budget: float) -> list[int] | None:
        """Return the cheapest choice in `loss` that fits `budget` ms, or None."""
        whole = [0] * len(self.sites)
        if self.total(whole) <= budget * (1 + 1e-9):
            return whole
        return knapsack(loss, self.ms, budget - self.rest)

    def evaluate(self, choice: Sequence[int]) -> float:
        """Return the measured calibration loss of a choice."""
        assert self.trial is not None
        loss = self.trial.evaluate(choice)
        best = min([loss, *(entry["best"] for entry in self.history[-1:])])
        self.history.append({"step": len(self.history), "loss": loss, "best": best})
        return loss

    def losses(self, anchors: list[float], draws: int | None = None) -> list[Row]:
        """Return the loss of every level in nats, from `sensitivities`."""
        pairs = zip(self.loss, self.sensitivities(anchors, draws), strict=True)
        return [calibrate_priors(prior, measured) for prior, measured in pairs]

    def sensitivities(
        self, anchors: list[float], draws: int | None = None
    ) -> list[dict[int, float]]:
        """Return each site's loss increase at the levels nearest `anchors`; cached.

        What is gone is measured with the fold that takes it over, where there is one. Measured, or
        estimated by the Fisher information of so many draws.
        """
        at = [
            sorted({_nearest(row, anchor) for anchor in anchors}) if len(row) > 1 else []
            for row in self.kept
        ]

        def build(directory: Path) -> None:
            assert self.trial is not None
            kept = self.cache.checkpoints(key)  # of blocks that an earlier start has finished
            if draws is None:
                losses = self.trial.sensitivities(at, kept)
            else:
                losses = fisher_losses(self.trial, at, draws)
            shutil.rmtree(kept, ignore_errors=True)
            (directory / "sensitivities.json").write_text(to_json(losses))

        key = {"of": self.identity, "at": at, **self.with_folds}
        key |= {"draws": draws} if draws else {}
        entry = self.cache.stage("sensitivities", key, build)
        rows = json.loads((entry / "sensitivities.json").read_text())
        return [{int(level): dear(loss) for level, loss in row.items()} for row in rows]


def build_problem(
    levels: Levels,
    table: LatencyTable,
    trial: CandidateEvaluator | None,
    cache: Cache,
    seed: int = 0,
) -> Problem:
    """Put losses, milliseconds and measurements together for a search."""
    sites = list(levels)
    identity: dict[str, Any] = {"version": 5, "levels": levels.identity}
    if trial is not None:
        identity["batches"] = [state.batch.digest() for state in trial.states]
        identity["compared"] = [batch.digest() for batch in trial.compared]
        identity["objective"] = trial.objective
        identity["in_bfloat16"] = trial.in_bfloat16
    return Problem(
        sites,
        [site_levels.shapes for site_levels in levels.values()],
        [_priors(levels, site) for site in sites],
        [np.array([table.ms(s, shape) for shape in levels[s].shapes]) for s in sites],
        [site_levels.keeps.float().mean(1).numpy() for site_levels in levels.values()],
        table.rest,
        trial,
        cache,
        identity,
        levels.folds,
        seed,
    )


def _priors(levels: Levels, site: Site) -> Row:
    """Return the relative output error of every level; of what is gone, what its fold leaves."""
    row, folds = np.array(levels[site].loss), levels.folds
    if folds is not None and site in folds.writers:
        gone = ~levels[site].keeps.any(1).numpy()
        row[gone] = folds.error(site)
    return row


def _nearest(kept: Row, share: float) -> int:
    """Return the level below dense whose kept share is nearest `share`."""
    return 1 + int(np.abs(kept[1:] - share).argmin())


def calibrate_priors(prior: Row, measured: dict[int, float]) -> Row:
    """Scale prior losses so that they meet the losses measured at a few levels.

    The ratio measured / prior is interpolated in the logarithm of the prior between the measured
    levels and constant beyond them. Levels that leave the output as it is stay free. A level that
    was measured as infinite is infinitely dear, and so is what has at least its prior; a site of
    which nothing finite was measured stays whole.
    """
    at_least = 1e-12
    dense = np.arange(len(prior)) == 0
    broken = [prior[s] for s, loss in measured.items() if not np.isfinite(loss)]
    beyond = ~np.isfinite(prior) | (prior >= min(broken, default=np.inf))
    if broken and len(broken) == len(measured):
        beyond = ~dense
    prior = np.where(beyond, at_least, prior)  # of no meaning
    pairs = sorted(
        (prior[s], loss / prior[s])
        for s, loss in measured.items()
        if not beyond[s] and prior[s] > at_least
    )
    scaled = prior
    if pairs:
        errors, ratios = (np.array(column) for column in zip(*pairs, strict=True))
        ratios = np.maximum(ratios, 1e-6 * ratios.max() + 1e-12)
        at = np.log(np.maximum(prior, at_least))
        scaled = prior * np.exp(np.interp(at, np.log(errors), np.log(ratios)))
    return np.where(dense, 0.0, np.where(beyond, np.inf, scaled))
