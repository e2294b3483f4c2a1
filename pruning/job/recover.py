"""Training between pruning and the last measurements: what `run` does of it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.calibration.calibration import CalibrationData
from pruning.data.batch import Batch, Row
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.job.closed_loop import ClosedLoopResult, timed_again
from pruning.models.loaded import LoadedModel
from pruning.recovery.recovery import NoRecovery, Training
from pruning.recovery.rows import rows_of
from pruning.system.job import Job

if TYPE_CHECKING:
    from pruning.recovery.stage import Recovered


@dataclass(frozen=True)
class Material:
    """What a pruned model is trained on."""

    rows: list[Row]  # for a training
    batches: list[Batch]  # the calibration's: for local reconstruction


def recovery_material(
    experiment: Experiment,
    tokenizer: PreTrainedTokenizerBase,
    text: CalibrationData,
    suite: Suite,
    job: Job,
) -> Material:
    """Return what the pruned model will be trained on; no rows where no training is asked for."""
    recovery = experiment.recovery
    if not isinstance(recovery, Training):
        return Material([], text.batches)
    source = experiment.calibration, experiment.task, suite, tokenizer
    rows = rows_of(recovery, *source, replace(job, seed=_seed(experiment)))
    return Material(rows, text.batches)


def recover(
    experiment: Experiment,
    made: ClosedLoopResult,
    dense: LoadedModel,
    material: Material,
    suite: Suite,
    job: Job,
) -> "tuple[ClosedLoopResult, Recovered | None]":
    """Train the pruned model and time it again; without recovery return what was given.

    Local reconstruction comes first, if it is asked for.
    """
    recovery = experiment.recovery
    if isinstance(recovery, NoRecovery):
        return made, None

    def quality(student: PreTrainedModel) -> dict[str, float]:
        return suite.evaluate(student, dense.tokenizer, job.cache).metrics

    trained, student = None, made.pruned
    with job.stopwatch("recover"):
        if (recipe := recovery.reconstruction) is not None:
            from pruning.recovery.stage import Reconstruction, reconstructed

            given = Reconstruction(student, dense.model, material.batches, experiment.seed)
            trained = reconstructed(recipe, given, job.cache)
            student = trained.model
        if isinstance(recovery, Training):
            from pruning.recovery.stage import Distillation, recovered  # peft: a second to import

            given = Distillation(student, dense.model, material.rows, _seed(experiment))
            watched = suite.identity(dense.tokenizer)
            first, trained = trained, recovered(recovery, given, job.cache, quality, watched)
            if first is not None:
                trained.cost["local"] = first.cost
    assert trained is not None
    made = replace(made, pruned=trained.model)
    if (how := experiment.hardware.measurement(dense.model, experiment.runtime)) is not None:
        with job.stopwatch("measure"):
            made = timed_again(made, dense.reference.model, how)
    return made, trained


def _seed(experiment: Experiment) -> int:
    """Return a seed for each target of a path, so that each has rows of its own."""
    assert isinstance(experiment.recovery, Training)
    return experiment.seed + 1000 * experiment.recovery.place(experiment.speedup)
