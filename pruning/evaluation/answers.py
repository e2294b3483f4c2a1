"""Readers of contexts on questions: the best span of a model, SQuAD's metrics by torchmetrics.

Where questions may have no answer, a reader says so by its score of the token in front of all, as
in SQuAD 2.0: `""` is its answer where the least such score of the windows is above the best span's.
"""

import math
from functools import partial
from statistics import fmean, stdev

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.text import squad

from pruning.data.batch import Batch
from pruning.data.questions import Question
from pruning.evaluation.part import Candidate, Measured, digest_of
from pruning.evaluation.specs import QuestionData
from pruning.system.progress import track
from pruning.tasks.windows import windows


def evaluate_questions(name: str, task: QuestionData, candidate: Candidate) -> Measured:
    """Return `<task>/exact_match` and `<task>/f1`, means, each with its standard error.

    With `task.unanswerable` the same over the questions with an answer, `HasAns_...`, and over
    those without, `NoAns_...`, as the evaluation of SQuAD 2.0 has them.
    """
    asked = candidate.take(partial(task.read, candidate.cache, f"suite.questions.{name}"))
    said = answers(name, task, asked, candidate)
    scores = [judge(question, text) for question, text in zip(asked, said, strict=True)]
    kinds = {"": scores}
    if task.unanswerable:
        pairs = list(zip(scores, asked, strict=True))
        kinds["HasAns_"] = [score for score, question in pairs if question.answers]
        kinds["NoAns_"] = [score for score, question in pairs if not question.answers]
    metrics: dict[str, float] = {}
    for kind, chosen in kinds.items():
        metrics |= {f"{name}/{kind}{key}": value for key, value in _means(chosen).items()}
    return Measured(metrics, {name: digest_of(asked)})


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for metric in scores[0] if scores else ():
        values = [score[metric] for score in scores]
        metrics[metric] = fmean(values)
        spread = stdev(values) if len(values) > 1 else 0.0
        metrics[f"{metric}_stderr"] = spread / math.sqrt(len(values))
    return metrics


def judge(question: Question, answer: str) -> dict[str, float]:
    """Return exact match and F1 of one answer, between 0 and 1, by the rules of SQuAD.

    Where the question has no answer both are 1 for `""` and 0 for all else, as in SQuAD 2.0.
    """
    judged = squad(
        [{"id": "0", "prediction_text": answer}],
        [{"id": "0", "answers": {"text": question.answers or [""]}}],  # type: ignore[dict-item]
    )
    return {metric: float(value) / 100 for metric, value in judged.items()}


@torch.no_grad()
def answers(
    name: str, task: QuestionData, asked: list[Question], candidate: Candidate
) -> list[str]:
    """Return the span of each context that the model scores highest, over all its windows.

    With `task.unanswerable`, `""` where the model rather says that there is none.
    """
    best, model, batch = [(-math.inf, "")] * len(asked), candidate.model, candidate.batch
    none = [math.inf if task.unanswerable else -math.inf] * len(asked)
    cut = (candidate.tokenizer, task.max_length, task.stride, f"suite.questions.{name}")
    parts = list(windows(asked, *cut))
    for start in track(range(0, len(parts), batch), f"evaluate: {name}"):
        part = parts[start : start + batch]
        inputs = Batch.from_rows([window.row for window in part], model.config.pad_token_id or 0)
        out = model(**inputs.inputs(model.device))
        for index, window in enumerate(part):
            characters = window.characters
            starts, ends = (
                logits[index, : len(characters)].float().cpu()
                for logits in (out.start_logits, out.end_logits)
            )
            first, last, score = span(starts, ends, characters[:, 1] > 0, task.max_answer_length)
            none[window.question] = min(none[window.question], float(starts[0] + ends[0]))
            if score > best[window.question][0]:
                text = asked[window.question].context[characters[first, 0] : characters[last, 1]]
                best[window.question] = score, text
    return ["" if no > score else text for no, (score, text) in zip(none, best, strict=True)]


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
