"""Readers of contexts on questions: the best span of a model, SQuAD's metrics by torchmetrics."""

import math
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.text import squad

from pruning.calibration.batch import Batch
from pruning.evaluation.suite import Answered
from pruning.results.cache import Cache
from pruning.results.progress import track
from pruning.tasks.questions import Question
from pruning.tasks.windows import windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def evaluate_questions(
    name: str,
    task: Answered,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    cache: Cache,
    limit: int | None,
    batch: int,
) -> dict[str, float]:
    """Return `{"<task>/exact_match": share, "<task>/f1": mean}`, each with its standard error."""
    asked = task.read(cache, f"suite.questions.{name}", limit)
    said = answers(name, task, asked, model, tokenizer, batch)
    scores = [judge(question, text) for question, text in zip(asked, said, strict=True)]
    found: dict[str, float] = {}
    for metric in scores[0] if scores else ():
        values = [score[metric] for score in scores]
        found[f"{name}/{metric}"] = fmean(values)
        spread = stdev(values) if len(values) > 1 else 0.0
        found[f"{name}/{metric}_stderr"] = spread / math.sqrt(len(values))
    return found


def judge(question: Question, answer: str) -> dict[str, float]:
    """Return exact match and F1 of one answer, between 0 and 1, by the rules of SQuAD 1.1."""
    truth = {"text": question.answers, "answer_start": [question.start] * len(question.answers)}
    found = squad(
        [{"id": "0", "prediction_text": answer}],
        [{"id": "0", "answers": truth}],  # type: ignore[dict-item]
    )
    return {metric: float(value) / 100 for metric, value in found.items()}


@torch.no_grad()
def answers(
    name: str,
    task: Answered,
    asked: list[Question],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: int,
) -> list[str]:
    """Return the span of each context that the model scores highest, over all its windows."""
    best = [(-math.inf, "")] * len(asked)
    parts = list(windows(asked, tokenizer, task.sequence, task.stride, f"suite.questions.{name}"))
    for start in track(range(0, len(parts), batch), f"evaluate: {name}"):
        part = parts[start : start + batch]
        inputs = Batch.of([window.row for window in part], model.config.pad_token_id or 0)
        out = model(**inputs.inputs(model.device))
        for index, window in enumerate(part):
            characters = window.characters
            starts, ends = (
                logits[index, : len(characters)].float().cpu()
                for logits in (out.start_logits, out.end_logits)
            )
            first, last, score = span(starts, ends, characters[:, 1] > 0, task.longest)
            if score > best[window.question][0]:
                text = asked[window.question].context[characters[first, 0] : characters[last, 1]]
                best[window.question] = score, text
    return [text for _, text in best]


def span(
    starts: Float[Tensor, " sequence"],
    ends: Float[Tensor, " sequence"],
    allowed: Bool[Tensor, " sequence"],
    longest: int,
) -> tuple[int, int, float]:
    """Return the first and last token, of at most `longest`, with the highest sum of logits."""
    scores = starts[:, None] + ends[None, :]
    possible = allowed[:, None] & allowed[None, :]
    possible = possible.triu().tril(longest - 1)
    scores = scores.masked_fill(~possible, -math.inf)
    first, last = divmod(int(scores.argmax()), len(ends))
    return first, last, float(scores[first, last])
