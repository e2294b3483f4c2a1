"""Training between pruning and the last measurements: what `run` does of it."""

from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.data.batch import Row
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.job.closed_loop import Met, timed_again
from pruning.recovery.recovery import Training
from pruning.recovery.rows import rows_of
from pruning.system.cache import Cache
from pruning.system.stopwatch import Stopwatch

if TYPE_CHECKING:
    from pruning.recovery.stage import Recovered


def lessons(
    experiment: Experiment, tokenizer: PreTrainedTokenizerBase, suite: Suite, cache: Cache
) -> list[Row]:
    """Return the rows that the pruned model will be trained on; none without recovery."""
    recovery = experiment.recovery
    if not isinstance(recovery, Training):
        return []
    source = (experiment.calibration, experiment.task, suite, tokenizer, cache, _seed(experiment))
    return rows_of(recovery, *source)


def heal(
    experiment: Experiment,
    met: Met,
    dense: PreTrainedModel,
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    cache: Cache,
    clock: Stopwatch,
) -> "Recovered | None":
    """Put the trained model in the place of the pruned one, and time it again; or do nothing."""
    recovery = experiment.recovery
    if not isinstance(recovery, Training):
        return None

    def quality(student: PreTrainedModel) -> dict[str, float]:
        return suite.evaluate(student, tokenizer, cache).metrics

    with clock("recover"):
        from pruning.recovery.stage import recovered  # peft takes a second to import
        from pruning.recovery.train import Distillation

        given = Distillation(met.pruned, dense, rows, _seed(experiment))
        found = recovered(recovery, given, cache, quality, suite.identity(tokenizer))
    met.pruned = found.model
    if (how := experiment.hardware.measurement(dense, experiment.runtime)) is not None:
        with clock("measure"):
            timed_again(met, dense, how)
    return found


def _seed(experiment: Experiment) -> int:
    """Return a seed for each target of a path, so that each has rows of its own."""
    assert isinstance(experiment.recovery, Training)
    return experiment.seed + 1000 * experiment.recovery.place(experiment.speedup)
