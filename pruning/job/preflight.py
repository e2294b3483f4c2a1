"""What a job asks of a model that the model cannot read: refused before any work."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.calibration.calibration import Target
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.job.memory import check_memory, check_streamed
from pruning.models.sites import architecture, positions
from pruning.recovery.recovery import Training
from pruning.system.cache import Cache


def preflight(
    experiment: Experiment,
    suite: Suite,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
) -> None:
    """Raise ValueError where the runtime, the suite, a length or a token is not for this model."""
    check_streamed(experiment, model)
    check_memory(experiment, model)
    experiment.runtime.check(model, tokenizer)
    target = experiment.calibration.target
    if target is not Target.local and architecture(model).experts:
        raise ValueError(
            f"calibration.target={target} solves weights behind pruned blocks, and experts have "
            "many at once there: give calibration.target=local"
        )
    if experiment.calibration.launcher is not None and architecture(model).experts:
        raise ValueError(
            f"calibration.launcher={experiment.calibration.launcher!r} shares batches, and what a "
            "router gives experts is noted by one process: give null"
        )
    suite.check(model, tokenizer)
    _check_lengths(experiment, model)
    if experiment.calibration.text is not None:
        experiment.calibration.bos.encoder(tokenizer, "calibration.bos")
    if suite.perplexity is not None:
        suite.perplexity.bos.encoder(tokenizer, "suite.perplexity.bos")
    if not _grown(model, tokenizer):
        return
    if experiment.task is not None:
        rows = experiment.task.examples(tokenizer, cache)
        check_ids((row["input_ids"] for row in rows), model, tokenizer, "task.train")
    special: list[int] = tokenizer("a", verbose=False).input_ids  # type: ignore[assignment]
    for path, name, part in suite.parts():
        pad = [tokenizer.pad_token_id] if part.head else []  # classifiers read padded rows
        read = [special, pad, *part.reads(name, tokenizer, cache)]
        check_ids(map(torch.tensor, filter(None, read)), model, tokenizer, path)


def check_ids(
    ids: Iterable[Tensor],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    field: str,
) -> None:
    """Raise ValueError, naming `field`, where a token of a text has no row in the embedding.

    A tokenizer may have more tokens than the embedding has rows, as long as they do not occur.
    """
    if not _grown(model, tokenizer):
        return
    largest, rows = max((int(part.max()) for part in ids), default=0), model.config.vocab_size
    if largest >= rows:
        raise ValueError(
            f"{field}: token {largest}, {tokenizer.convert_ids_to_tokens(largest)!r}, has no row "
            f"in the model's embedding of {rows} rows; the tokenizer has {len(tokenizer)} tokens: "
            "give the tokenizer that the model was trained with, or resize the embedding and train"
        )


def _check_lengths(experiment: Experiment, model: PreTrainedModel) -> None:
    """Raise ValueError where rows of text are longer than the positions of the model.

    Rows of a task are not text: `task.max_length` is checked when the model is loaded. Those of the
    search are cut from rows of calibration.
    """
    longest, given = positions(model), {}
    if experiment.calibration.text is not None:
        given["calibration.sequence_length"] = experiment.calibration.sequence_length
    if experiment.task is None and isinstance(experiment.recovery, Training):
        given["recovery.max_length"] = experiment.recovery.max_length
    for option, length in given.items():
        if longest and length > longest:
            raise ValueError(
                f"{option}={length} goes beyond the {longest} positions of this model: lower it"
            )


def _grown(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    return max(tokenizer.get_vocab().values(), default=0) >= model.config.vocab_size
