"""Training between pruning and the last measurements: what `run` does of it."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.calibration.calibration import CalibrationData
from pruning.data.batch import Batch, Row
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.job.closed_loop import ClosedLoopResult, timed_again
from pruning.models.loaded import LoadedModel
from pruning.recovery.recovery import LocalReconstruction, NoRecovery, Training
from pruning.recovery.rows import rows_of
from pruning.system.job import Job

if TYPE_CHECKING:
    from pruning.recovery.stage import Recovered


Material = list[Row] | list[Batch]  # rows for a training, the calibration's batches otherwise


def recovery_material(
    experiment: Experiment,
    tokenizer: PreTrainedTokenizerBase,
    text: CalibrationData,
    suite: Suite,
    job: Job,
) -> Material:
    """Return what the pruned model will be trained on; nothing without recovery."""
    recovery = experiment.recovery
    if isinstance(recovery, LocalReconstruction):
        return text.batches
    if not isinstance(recovery, Training):
        return []
    source = experiment.calibration, experiment.task, suite, tokenizer
    return rows_of(recovery, *source, replace(job, seed=_seed(experiment)))


def recover(
    experiment: Experiment,
    made: ClosedLoopResult,
    dense: LoadedModel,
    material: Material,
    suite: Suite,
    job: Job,
) -> "tuple[ClosedLoopResult, Recovered | None]":
    """Train the pruned model and time it again; without recovery return what was given."""
    recovery = experiment.recovery
    if isinstance(recovery, NoRecovery):
        return made, None
    learned: Any = material

    def quality(student: PreTrainedModel) -> dict[str, float]:
        return suite.evaluate(student, dense.tokenizer, job.cache).metrics

    with job.stopwatch("recover"):
        if isinstance(recovery, LocalReconstruction):
            from pruning.recovery.stage import Reconstruction, reconstructed

            given = Reconstruction(made.pruned, dense.model, learned, experiment.seed)
            trained = reconstructed(recovery, given, job.cache)
        else:
            assert isinstance(recovery, Training)
            from pruning.recovery.stage import Distillation, recovered  # peft: a second to import

            given = Distillation(made.pruned, dense.model, learned, _seed(experiment))
            watched = suite.identity(dense.tokenizer)
            trained = recovered(recovery, given, job.cache, quality, watched)
    made = replace(made, pruned=trained.model)
    if (how := experiment.hardware.measurement(dense.model, experiment.runtime)) is not None:
        with job.stopwatch("measure"):
            made = timed_again(made, dense.model, how)
    return made, trained


def _seed(experiment: Experiment) -> int:
    """Return a seed for each target of a path, so that each has rows of its own."""
    assert isinstance(experiment.recovery, Training)
    return experiment.seed + 1000 * experiment.recovery.place(experiment.speedup)
