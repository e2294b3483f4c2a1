"""Training between pruning and the last measurements: what `run` does of it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.data.batch import Row
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.job.closed_loop import ClosedLoopResult, timed_again
from pruning.models.loaded import LoadedModel
from pruning.recovery.recovery import Training
from pruning.recovery.rows import rows_of
from pruning.system.job import Job

if TYPE_CHECKING:
    from pruning.recovery.stage import Recovered


def recovery_rows(
    experiment: Experiment, tokenizer: PreTrainedTokenizerBase, suite: Suite, job: Job
) -> list[Row]:
    """Return the rows that the pruned model will be trained on; none without recovery."""
    recovery = experiment.recovery
    if not isinstance(recovery, Training):
        return []
    source = experiment.calibration, experiment.task, suite, tokenizer
    return rows_of(recovery, *source, replace(job, seed=_seed(experiment)))


def recover(
    experiment: Experiment,
    made: ClosedLoopResult,
    dense: LoadedModel,
    rows: list[Row],
    suite: Suite,
    job: Job,
) -> "tuple[ClosedLoopResult, Recovered | None]":
    """Train the pruned model and time it again; without recovery return what was given."""
    recovery = experiment.recovery
    if not isinstance(recovery, Training):
        return made, None

    def quality(student: PreTrainedModel) -> dict[str, float]:
        return suite.evaluate(student, dense.tokenizer, job.cache).metrics

    with job.stopwatch("recover"):
        from pruning.recovery.stage import recovered  # peft takes a second to import
        from pruning.recovery.train import Distillation

        given = Distillation(made.pruned, dense.model, rows, _seed(experiment))
        trained = recovered(recovery, given, job.cache, quality, suite.identity(dense.tokenizer))
    made = replace(made, pruned=trained.model)
    if (how := experiment.hardware.measurement(dense.model, experiment.runtime)) is not None:
        with job.stopwatch("measure"):
            made = timed_again(made, dense.model, how)
    return made, trained


def _seed(experiment: Experiment) -> int:
    """Return a seed for each target of a path, so that each has rows of its own."""
    assert isinstance(experiment.recovery, Training)
    return experiment.seed + 1000 * experiment.recovery.place(experiment.speedup)
