"""Classifiers on labelled texts: predictions of a model, metrics of scikit-learn and SciPy."""

import math
from collections import Counter
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from pruning.evaluation.part import Candidate, Measured, digest_of
from pruning.evaluation.specs import LabelledData, Metric
from pruning.models.sites import positions
from pruning.system.progress import track

CORRELATIONS = {Metric.pearson: pearsonr, Metric.spearman: spearmanr}  # of numbers


def evaluate_labelled(name: str, task: LabelledData, candidate: Candidate) -> Measured:
    """Return `<task>/<metric>`, for accuracy with its standard error and its chance.

    That is the accuracy of always saying the most frequent class.
    """
    rows = candidate.take(partial(task.read, candidate.cache, f"suite.labelled.{name}"))
    logits = predict(name, task, rows, candidate)
    truth = [row[task.label] for row in rows]
    _check_labels(f"suite.labelled.{name}", task, truth, logits.shape[1])
    metrics: dict[str, float] = {}
    for metric in task.metrics:
        metrics[f"{name}/{metric}"] = value = score(metric, logits, truth)
        if metric is Metric.accuracy:
            spread = math.sqrt(value * (1 - value) / max(1, len(rows) - 1))
            metrics[f"{name}/{metric}_stderr"] = spread
            metrics[f"{name}/{metric}_chance"] = max(Counter(truth).values()) / len(truth)
    columns = [*task.columns, task.label]
    return Measured(metrics, {name: digest_of([row[c] for c in columns] for row in rows)})


def _check_labels(where: str, task: LabelledData, truth: list, outputs: int) -> None:
    """Raise ValueError where labels or metrics are not for what the model predicts."""
    of_numbers = [metric for metric in task.metrics if metric in CORRELATIONS]
    if of_numbers and outputs > 1:
        raise ValueError(
            f"{where}.metrics={[*map(str, task.metrics)]}: {of_numbers[0]} is of a number, and "
            f"this model predicts one of {outputs} classes: give accuracy, f1 or matthews"
        )
    if len(of_numbers) == len(task.metrics):
        return
    if outputs == 1:
        raise ValueError(
            f"{where}.metrics={[*map(str, task.metrics)]}: this model predicts a number: give "
            "pearson or spearman"
        )
    for label in truth:
        if label not in range(outputs):
            raise ValueError(
                f"{where}.label={task.label!r}: {label!r} is not one of the {outputs} classes of "
                "this model, 0 and up: leave out such rows, or give a model of these classes"
            )


@torch.no_grad()
def predict(
    name: str, task: LabelledData, rows: list[dict], candidate: Candidate
) -> Float[np.ndarray, "rows classes"]:
    """Return the logits of every row, in order; texts beyond the model's positions are cut."""
    logits, model, batch = [], candidate.model, candidate.batch
    for start in track(range(0, len(rows), batch), f"evaluate: {name}"):
        part = rows[start : start + batch]
        texts = [[row[column] for row in part] for column in task.columns]
        inputs = candidate.tokenizer(
            texts[0],
            texts[1] if len(texts) > 1 else None,
            padding=True,
            truncation=True,
            max_length=positions(model),
            return_tensors="pt",
        ).to(model.device)
        logits.append(model(**inputs).logits.float().cpu())
    return torch.cat(logits).numpy()


def score(metric: Metric, logits: Float[np.ndarray, "rows classes"], truth: list) -> float:
    """Return one metric; the last two compare a single output with a number."""
    if metric in CORRELATIONS:
        return float(CORRELATIONS[metric](logits[:, 0], truth)[0])  # type: ignore[arg-type]
    scores = {
        Metric.accuracy: accuracy_score,
        Metric.f1: f1_score,
        Metric.matthews: matthews_corrcoef,
    }
    return float(scores[metric](truth, logits.argmax(1)))
