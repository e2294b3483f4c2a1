"""Coefficient searches: structured SPDY, and the DP on measured sensitivities."""

from collections.abc import Callable, Sequence

import numpy as np

from pruning.search.knapsack import Row
from pruning.search.options import Chooser
from pruning.search.problem import Problem, scaled
from pruning.system.progress import track

Coefficients = np.ndarray


def _solve(problem: Problem, loss: Sequence[Row], c: Coefficients, budget: float):
    return problem.solve([row * weight for row, weight in zip(loss, c, strict=True)], budget)


class _Climb:
    """Keeps the coefficients whose solution has the lowest measured loss."""

    def __init__(self, problem: Problem, loss: Sequence[Row], budget: float):
        self.problem, self.loss, self.budget = problem, loss, budget
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

    def climb(
        self, steps: int, share: float, change: Callable[[np.ndarray], np.ndarray], seed: int = 0
    ) -> None:
        """Offer `steps` mutants of the best coefficients, each with a `share` of them changed."""
        if steps == 0:
            return
        random = np.random.default_rng(seed)
        for _ in track(range(steps), "search: local"):
            changed = random.random(len(self.loss)) < share
            c = self.coefficients.copy()
            c[changed] = change(c[changed])
            self.offer(c)

    def chooser(self) -> Chooser:
        """Return the DP under the best coefficients."""
        c = self.coefficients
        return lambda budget: _solve(self.problem, self.loss, c, budget)


def spdy(problem: Problem, budget: float, inits: int, steps: int, mutation: float) -> Chooser:
    """Search coefficients of the priors from random starts (structured SPDY)."""
    random = np.random.default_rng(0)
    climb = _Climb(problem, problem.loss, budget)
    for _ in track(range(inits), "search: random starts"):
        climb.offer(random.random(len(problem.loss)))
    climb.climb(steps, mutation, lambda c: random.random(len(c)))
    return climb.chooser()


def calibrated(
    problem: Problem, budget: float, anchors: list[float], steps: int, mutation: float
) -> Chooser:
    """Solve on measured sensitivities; try mutants of the coefficients, factors e^(N/2)."""
    measured = problem.sensitivities(anchors)
    loss = [scaled(prior, at) for prior, at in zip(problem.loss, measured, strict=True)]
    random = np.random.default_rng(0)
    climb = _Climb(problem, loss, budget)
    climb.offer(climb.coefficients)
    climb.climb(steps, mutation, lambda c: c * np.exp(0.5 * random.standard_normal(len(c))))
    return climb.chooser()
