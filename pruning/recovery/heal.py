"""Training between pruning and the last measurements: what `run` does of it."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.latency.local import Local
from pruning.latency.meet import Met, timed_again
from pruning.recovery.recovery import Recovered, Training
from pruning.recovery.rows import rows_of
from pruning.results.cache import Cache
from pruning.results.stopwatch import Stopwatch


def heal(
    experiment: Experiment,
    met: Met,
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    cache: Cache,
    clock: Stopwatch,
) -> Recovered | None:
    """Put the trained model in the place of the pruned one, and time it again; or do nothing."""
    recovery = experiment.recovery
    if not isinstance(recovery, Training):
        return None
    seed = experiment.seed + 1000 * recovery.place(experiment.speedup)  # other rows at each target

    def quality(student: PreTrainedModel) -> dict[str, float]:
        return suite.evaluate(student, tokenizer, cache).metrics

    with clock("recover"):
        source = (experiment.calibration, experiment.task, suite, tokenizer, cache, seed)
        rows = rows_of(recovery, *source)
        found = recovery.recover(met.pruned, dense, rows, cache, seed, quality)
    met.pruned = found.model
    if isinstance(experiment.hardware, Local):
        with clock("measure"):
            timed_again(met, dense, experiment.hardware)
    return found
