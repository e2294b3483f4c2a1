"""What a pruned model is trained on."""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from pruning.calibration.calibration import Calibration
from pruning.data.batch import Row, shuffled
from pruning.data.contamination import MOST, disjoint
from pruning.evaluation.suite import Suite
from pruning.recovery.recipe import Recipe
from pruning.system.job import Job
from pruning.tasks.task import Task

ALL = 2**40  # tokens, more than any text has


def rows_of(
    recovery: Recipe,
    calibration: Calibration,
    task: Task | None,
    suite: Suite,
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
) -> list[Row]:
    """Return the rows of a task, or of as much text as the budget asks for; none of the suite's.

    Every seed has an order of its own.
    """
    r, field, text = recovery, "recovery.text", recovery.text
    cache, seed = job.cache, job.seed
    if not text.path and task is not None:
        rows, field = list(shuffled(task.examples(tokenizer, cache), seed)), "task.train"
    elif task is not None:
        raise ValueError(
            f"recovery.text is for decoders: task={task.name} is trained for on its own rows, "
            "task.train; leave the text out"
        )
    else:
        if not text.path:
            assert calibration.text is not None, "Experiment asks for one where there is no task"
            text, field = calibration.text, "calibration.text"
        wanted = ALL
        if r.minutes is None:
            wanted = (
                r.tokens
                or (r.steps or 1) * r.gradient_accumulation_steps * r.batch_size * r.max_length
            )
        packed = replace(calibration, text=text, sequence_length=r.max_length)
        rows = packed.rows(text.documents(cache, field), wanted, tokenizer, seed).rows()
    if not rows:
        raise ValueError(
            f"{field} is shorter than a row of recovery.max_length={r.max_length} tokens: give "
            "more text, or shorter rows"
        )
    judged = [ids for _, name, part in suite.parts() for ids in part.reads(name, tokenizer, cache)]
    special: list[int] = tokenizer.all_special_ids  # type: ignore[assignment]
    most = 1.0 if field == "task.train" else MOST  # pairs of some tasks share a text by design
    return disjoint(rows, judged, special, field, most)
