"""What searches and their implementations are given: below both."""

from collections.abc import Callable
from enum import StrEnum

Chooser = Callable[
    [float], "list[int] | None"
]  # budget in ms -> a level per site, None if none fits


class Objective(StrEnum):
    """The calibration loss that a search lowers."""

    kl = "kl"  # KL divergence from the dense model's next-token distribution, nats per token
    task = "task"  # next-token cross entropy, nats per token


class Sensitivity(StrEnum):
    """How a search learns what a level of one sub-block costs the whole model."""

    measured = "measured"  # the model is run with it, from its block on
    fisher = "fisher"  # to second order, from one backward pass for all


class Ramp(StrEnum):
    """How the pruning ratio changes with depth."""

    log = "log"
    linear = "linear"
    uniform = "uniform"
    log_decrease = "log_decrease"
    linear_decrease = "linear_decrease"
