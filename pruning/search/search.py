"""How levels are chosen: the config group `search`."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from pruning.search.options import Chooser, Objective, Ramp, Sensitivity
from pruning.system.options import Options
from pruning.system.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from pruning.data.batch import Batch
    from pruning.latency.table import Shapes
    from pruning.models.sites import Site
    from pruning.search.problem import Problem
    from pruning.search.schedule import Form
    from pruning.search.trial import CandidateEvaluator
    from pruning.solver.levels import Levels


@dataclass
class Search(Options):
    """What decides how much of every site goes."""

    where = "search"
    supports_gradual: ClassVar[bool] = (
        True  # whether it chooses well among sites that were cut before
    )
    name: str = MISSING  # that results name it by

    def cost(self, sites: "Sequence[Site]", depth: int) -> dict[str, float | None]:
        """Return the tokens that its cached stages bring through a model of `depth` blocks."""
        return {}


@dataclass
class NoSearch(Search):
    """Nothing to choose: for methods that decide by themselves."""

    name: str = "none"


@dataclass
class LevelSearch(Search, ABC):
    """A way to choose one level per site under a latency budget."""

    measures: ClassVar[bool] = False  # losses of candidates

    def trial(
        self, model: "PreTrainedModel", levels: "Levels", batches: "list[Batch]"
    ) -> "AbstractContextManager[CandidateEvaluator | None]":
        """Open what candidates are measured with; nothing for a search that does not measure."""
        return nullcontext()

    @abstractmethod
    def prepare(self, problem: "Problem", budget: float) -> Chooser:
        """Do the work that is worth doing once, and return how any nearby budget is answered."""


@dataclass
class Uniform(LevelSearch):
    """The same FFN level in every block, attention untouched: the baseline to beat.

    Where the budget falls between two levels, the lower one is spread evenly over the depth.
    """

    supports_gradual: ClassVar[bool] = False  # blocks of unequal widths have no level in common

    name: str = "uniform"

    def prepare(self, problem: "Problem", budget: float) -> Chooser:
        """Return the widest uniform FFN schedule that fits."""
        from pruning.search.uniform import uniform

        return lambda budget: uniform(problem, budget)


@dataclass
class Schedule(LevelSearch):
    """A ratio per block, the same for attention and FFN, that depends on depth alone.

    The Incremental Pruning Ratio of SlimGPT (arXiv:2412.18110): `first` and `last` give the form,
    the budget scales it.
    """

    name: str = "schedule"
    ramp: Ramp = Ramp.log  # of the ratio over depth; log is SlimGPT's
    first: float = (
        0.0625  # ratio of the first block in proportion to `last`; the target scales both
    )
    last: float = 0.25  # ratio of the last block

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("first", "last", least=0, below=1)
        if isinstance(self.first, float) and isinstance(self.last, float):
            if self.first > self.last:
                raise ValueError(
                    f"search.first={self.first} must not be above search.last={self.last}: for a "
                    "ratio that falls with depth use search.ramp=log_decrease or linear_decrease"
                )
            if not self.last:
                raise ValueError("search.last=0.0 removes nothing: give a ratio above 0")

    def form(self) -> "Form":
        """Return how ratios change with depth."""
        from pruning.search.schedule import Form

        return Form(self.ramp, self.first, self.last)

    def prepare(self, problem: "Problem", budget: float) -> Chooser:
        """Scale the schedule to any budget."""
        from pruning.search.schedule import chooser

        options = dict(zip(problem.sites, problem.shapes, strict=True))

        def choice(left: "Shapes") -> list[int]:
            return [shapes.index(left[site]) for site, shapes in options.items()]

        within = chooser(self.form(), options, lambda left: problem.total(choice(left)))

        def choose(budget: float) -> list[int] | None:
            left = within(budget)
            return None if left is None else choice(left)

        return choose


@dataclass
class Guided(LevelSearch):
    """A search that measures whole candidates on a slice of the held-out calibration text."""

    measures: ClassVar[bool] = True

    objective: Objective = Objective.kl  # what a candidate is measured by
    tokens: int = 2048  # of the held-out calibration text per evaluation; rows for a classifier
    # tokens per row of them, shared equally among several lengths; null: the rows as they are
    sequence_length: list[int | None] = field(default_factory=lambda: [None, 128])
    # share of the rows whose second half is the first again, so that copying is seen; of a decoder
    repeated: float = 0.5
    predictions: int | None = 1024  # tokens whose predictions are compared, spread; null: all
    precision: Precision = Precision.auto  # of the passes; auto: bfloat16 where that is faster
    steps: int = 0  # local search: candidates tried
    mutation: float = 0.1  # local search: share of the coefficients that a candidate changes

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("tokens", "sequence_length", "predictions", least=1)
        self.check_range("steps", least=0)
        self.check_range("mutation", "repeated", least=0, most=1)
        if not self.sequence_length:
            raise ValueError(
                "search.sequence_length=[] must hold a length: give [null] for rows as they are"
            )

    def candidates(self) -> int:
        """Count the candidates that are measured."""
        return self.steps + 1

    def cost(self, sites: "Sequence[Site]", depth: int) -> dict[str, float | None]:
        """Count the text of every candidate."""
        return {"search": float(self.candidates() * self.tokens)}

    def trial(
        self, model: "PreTrainedModel", levels: "Levels", batches: "list[Batch]"
    ) -> "AbstractContextManager[CandidateEvaluator | None]":
        """Measure candidates on some of the held-out calibration text."""
        from pruning.models.sites import architecture
        from pruning.search.text import evaluation_text, with_repeats
        from pruning.search.trial import CandidateEvaluator

        rows = architecture(model).encoder
        text = evaluation_text(batches, self.tokens, self.sequence_length, whole=rows)
        if not rows:
            text = with_repeats(text, self.repeated)
        in_bfloat16 = self.precision.is_bfloat16(model.device)
        compared = None if rows else self.predictions
        return CandidateEvaluator(model, levels, text, self.objective, in_bfloat16, compared)


@dataclass
class Spdy(Guided):
    """Structured SPDY of ZipLM (arXiv:2302.04089): the DP under random layer coefficients.

    Coefficients start at the best of `inits` draws from U(0, 1); then `steps` times some of them
    are drawn again, and a candidate is kept when the measured loss falls.
    """

    name: str = "spdy"
    tokens: int = 512
    sequence_length: list[int | None] = field(default_factory=lambda: [None])
    repeated: float = 0.0
    steps: int = 1000
    inits: int = 100  # random coefficients to start from

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("inits", least=1)

    def candidates(self) -> int:
        """Count the random starts too."""
        return self.steps + self.inits

    def prepare(self, problem: "Problem", budget: float) -> Chooser:
        """Search the coefficients of the prior losses by measured calibration loss."""
        from pruning.search.climb import spdy

        return spdy(problem, budget, self.inits, self.steps, self.mutation)


@dataclass
class Calibrated(Guided):
    """The DP on sensitivities, then a local search if `steps` asks for one.

    Each sub-block's loss increase is measured, or estimated, at the levels nearest `anchors`
    (shares of the units kept), alone, once for all targets; the prior losses between them are
    scaled to fit.
    """

    name: str = "calibrated"
    sensitivity: Sensitivity = Sensitivity.measured  # where a loss is from
    draws: int = 2  # of labels for each prediction, where sensitivity=fisher
    # shares of the units kept at which a sub-block's loss is measured
    anchors: list[float] = field(default_factory=lambda: [0.5, 0.0])
    # factors of attention's losses that are tried; the best whole model by measured loss is kept
    balances: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0, 3.0])

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("anchors", least=0, most=1)
        self.check_range("balances", above=0)
        self.check_range("draws", least=1)
        if self.sensitivity is Sensitivity.fisher and self.objective is Objective.task:
            raise ValueError(
                "search.sensitivity=fisher estimates the divergence from the dense model: give "
                "search.objective=kl, or search.sensitivity=measured"
            )
        if not self.balances:
            raise ValueError("search.balances=[] must hold a factor: give [1.0] to try no others")

    def candidates(self) -> int:
        """Count a candidate for each balance too."""
        return self.steps + len(self.balances)

    def cost(self, sites: "Sequence[Site]", depth: int) -> dict[str, float | None]:
        """Count the text through the blocks from a site on, for every site and anchor.

        For the Fisher information twice forward, and back once for every draw.
        """
        if self.sensitivity is Sensitivity.fisher:
            passes = 2 + self.draws  # each back through what a block gives
        else:
            passes = len(self.anchors) * sum(1 - site.block / depth for site in sites)
        return {"sensitivities": passes * self.tokens, **super().cost(sites, depth)}

    def prepare(self, problem: "Problem", budget: float) -> Chooser:
        """Solve the DP on sensitivities and refine its coefficients by measured loss."""
        from pruning.search.climb import calibrated

        draws = self.draws if self.sensitivity is Sensitivity.fisher else None
        losses = problem.losses(self.anchors, draws)
        return calibrated(problem, budget, losses, self.balances, self.steps, self.mutation)
