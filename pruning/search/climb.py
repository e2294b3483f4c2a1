"""Coefficient searches: structured SPDY, and the DP on measured sensitivities."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pruning.models.sites import Kind
from pruning.search.knapsack import Row
from pruning.search.options import Chooser
from pruning.search.problem import Problem
from pruning.solver.levels import dear
from pruning.system.cache import digest
from pruning.system.files import to_json
from pruning.system.progress import track

Coefficients = np.ndarray


def _solve(problem: Problem, loss: Sequence[Row], c: Coefficients, budget: float):
    return problem.solve([row * weight for row, weight in zip(loss, c, strict=True)], budget)


class _Climb:
    """Keeps the coefficients whose solution has the lowest measured loss.

    All that is drawn comes from one generator, `random`, of the problem's seed.
    """

    def __init__(self, problem: Problem, loss: Sequence[Row], budget: float):
        self.problem, self.loss, self.budget = problem, loss, budget
        self.random = np.random.default_rng(problem.seed)
        self.best = np.inf
        self.coefficients = np.ones(len(loss))
        self.seen: dict[tuple[int, ...], float] = {}

    def offer(self, c: Coefficients) -> None:
        """Measure the solution under coefficients `c`; keep them if it is better."""
        choice = _solve(self.problem, self.loss, c, self.budget)
        if choice is None:
            return
        key = tuple(choice)
        if key not in self.seen:
            self.seen[key] = self.problem.evaluate(choice)
        if self.seen[key] < self.best:
            self.best, self.coefficients = self.seen[key], c

    def climb(self, steps: int, share: float, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Offer `steps` mutants of the best coefficients, each with a `share` of them changed."""
        if steps == 0:
            return
        for _ in track(range(steps), "search: local"):
            changed = self.random.random(len(self.loss)) < share
            c = self.coefficients.copy()
            c[changed] = change(c[changed])
            self.offer(c)

    def chooser(self, options: dict[str, Any], search: Callable[[], None]) -> Chooser:
        """Return the DP under the coefficients that `search` leaves; cached."""
        problem = self.problem

        def build(directory: Path) -> None:
            search()
            left = {"coefficients": self.coefficients.tolist(), "history": problem.history}
            (directory / "search.json").write_text(to_json(left))

        numbers = {"loss": self.loss, "ms": problem.ms}
        key = {
            "version": 2,
            "problem": problem.identity | problem.with_folds,
            "numbers": digest({name: [row.tolist() for row in r] for name, r in numbers.items()}),
            "rest": problem.rest,
            "budget": self.budget,
            "options": options,
            "seed": problem.seed,
        }
        entry = problem.cache.stage("search", key, build)
        left = json.loads((entry / "search.json").read_text())
        problem.history[:] = [
            {"step": row["step"], "loss": dear(row["loss"]), "best": dear(row["best"])}
            for row in left["history"]
        ]
        c = np.array(left["coefficients"])
        return lambda budget: _solve(problem, self.loss, c, budget)


def spdy(problem: Problem, budget: float, inits: int, steps: int, mutation: float) -> Chooser:
    """Search coefficients of the priors from random starts (structured SPDY)."""
    climb = _Climb(problem, problem.loss, budget)

    def search() -> None:
        for _ in track(range(inits), "search: random starts"):
            climb.offer(climb.random.random(len(problem.loss)))
        climb.climb(steps, mutation, lambda c: climb.random.random(len(c)))

    return climb.chooser({"spdy": [inits, steps, mutation]}, search)


def calibrated(
    problem: Problem,
    budget: float,
    loss: Sequence[Row],
    balances: list[float],
    steps: int,
    mutation: float,
) -> Chooser:
    """Solve on losses in nats; try mutants of the coefficients, factors e^(N/2).

    First the losses of all attentions are multiplied by each of `balances`, and the best is kept:
    the losses of several add up to more than their sum, and more so than those of FFNs.
    """
    climb = _Climb(problem, loss, budget)
    attention = np.array([site.kind is Kind.ATTENTION for site in problem.sites])
    both = attention.any() and not attention.all()

    def change(c: Coefficients) -> Coefficients:
        return c * np.exp(0.5 * climb.random.standard_normal(len(c)))

    def search() -> None:
        for factor in balances if both else [1.0]:
            climb.offer(np.where(attention, factor, 1.0))
        climb.climb(steps, mutation, change)

    return climb.chooser({"calibrated": [balances, steps, mutation]}, search)
