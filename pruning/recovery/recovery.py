"""What happens to a pruned model: the config group `recovery`."""

from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from pruning.recovery.recipe import LocalRecipe, Recipe
from pruning.system.options import Options


@dataclass
class Recovery(Options):
    """What happens to a model after it was pruned."""

    where = "recovery"
    streams: ClassVar[bool] = False  # whether one block in memory at a time is enough for it
    name: str = MISSING  # that results name it by

    def before(self, speedup: float | None) -> float | None:
        """Return the target that is pruned to on the way to `speedup`, if there is one."""
        return None

    @property
    def reconstruction(self) -> LocalRecipe | None:
        """Return how blocks are fitted to the dense ones, if they are."""
        return None

    def cost(self, calibrated: int) -> dict[str, float | None]:
        """Return how many tokens each of its stages brings through the model, None if not known.

        `calibrated` is the length of the calibration text.
        """
        return {}


@dataclass
class NoRecovery(Recovery):
    """Nothing: the model stays as the method made it."""

    streams: ClassVar[bool] = True
    name: str = "none"


@dataclass
class LocalReconstruction(LocalRecipe, Recovery):
    """Block after block, each fitted to the dense block's outputs; no other text is read."""

    @property
    def reconstruction(self) -> LocalRecipe:
        """Return itself."""
        return self

    def cost(self, calibrated: int) -> dict[str, float | None]:
        """Count its passes."""
        return {"recover": self.passes * calibrated}


@dataclass
class LocalFirst(LocalRecipe):
    """Local reconstruction in front of a training."""

    where = "recovery.local"


@dataclass
class Training(Recipe, Recovery):
    """Training by transformers' Trainer, for a number of steps or tokens, or for a time."""

    # targets that are pruned and trained to on the way
    path: list[float] = field(default_factory=list)
    # first each block is fitted to the dense one, on the calibration text, as recovery=local does
    local: LocalFirst | None = None

    @property
    def reconstruction(self) -> LocalRecipe | None:
        """Return what comes in front of the training."""
        return self.local

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.path, list) and (
            sorted(set(self.path)) != self.path or any(target < 1 for target in self.path)
        ):
            raise ValueError(f"recovery.path={self.path} must be ascending speedups of at least 1")

    def before(self, speedup: float | None) -> float | None:
        """Return the last target of the path below `speedup`."""
        if speedup is None:
            if self.path:
                raise ValueError(
                    f"recovery.path={self.path} leads to a speedup, and speedup=null gives none"
                )
            return None
        return max((target for target in self.path if target < speedup), default=None)

    def cost(self, calibrated: int) -> dict[str, float | None]:
        """Count three passes of the student and one of the teacher, where it is asked."""
        passes, first = 3.0 + self.loss.uses_teacher, 0.0
        if self.local is not None:
            first = self.local.passes * calibrated
        if self.steps is not None:
            rows = self.steps * self.gradient_accumulation_steps * self.batch_size
            return {"recover": passes * rows * self.max_length + first}
        return {"recover": None if self.tokens is None else passes * self.tokens + first}

    def place(self, speedup: float | None) -> int:
        """Return how many targets of the path lie before `speedup`."""
        return sum(target < speedup for target in self.path) if speedup is not None else 0
