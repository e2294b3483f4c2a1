"""The dense model with fewer tokens, as the one to be pruned: `model.vocabulary=trim`."""

from dataclasses import replace

from pruning.data.files import read_text
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.latency.table import LatencyTable
from pruning.models.loaded import LoadedModel
from pruning.models.source import Vocabulary
from pruning.system.files import expanded
from pruning.system.job import Job


def trim(
    experiment: Experiment, suite: Suite, dense: LoadedModel, job: Job
) -> tuple[LoadedModel, Suite]:
    """Cut the vocabulary to what text needs, and let the suite measure per byte; if asked for.

    Speed and quality are still compared with those of the model as it was.
    """
    model = experiment.model
    if model.vocabulary is Vocabulary.keep:
        return dense, suite
    if experiment.calibration.text is None:
        raise ValueError(
            "model.vocabulary=trim keeps the tokens of calibration.text, and "
            f"calibration={experiment.calibration.name} has none: give model.vocabulary=keep"
        )
    from pruning.models.vocabulary import trim

    with job.stopwatch("load"):
        texts = experiment.calibration.text.documents(job.cache, "calibration.text")
        for path in model.kept_text:
            texts.append(read_text(expanded(path, "model.kept_text"), "model.kept_text"))
        if isinstance(form := getattr(dense.tokenizer, "chat_template", None), str):
            texts.append(form)  # it has names of roles
        smaller = trim(dense.model, dense.tokenizer, texts, model.kept_scripts)
        experiment.runtime.check(*smaller)
        return LoadedModel(*smaller, dense), suite.per_byte(dense.tokenizer, job.cache)


def of_whole(
    experiment: Experiment, table: LatencyTable, dense: LoadedModel, job: Job
) -> LatencyTable:
    """Return the table of a trimmed model with the time of the model as it was in `dense`."""
    hardware, whole = experiment.hardware, dense.reference.model
    if whole is dense.model:
        return table
    args = job.cache, experiment.runtime
    if (ratio := hardware.slowdown(whole, dense.model, *args)) is not None:
        return replace(table, dense=table.dense * ratio)
    told = hardware.profile(whole, experiment.method.sites(whole), *args)
    return replace(table, dense=told.dense)
