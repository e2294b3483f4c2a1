"""Numbers of the config that cannot be are refused as soon as they are given: one table of them."""

import math
from dataclasses import fields, is_dataclass
from inspect import isabstract
from typing import Any, get_args, get_type_hints

import pytest

from pruning.calibration.calibration import Calibration
from pruning.composition import SCHEMAS
from pruning.data.text import Text
from pruning.evaluation.parts import Perplexity
from pruning.evaluation.specs import LmEvalData, QuestionData
from pruning.evaluation.suite import Suite
from pruning.experiment import Experiment
from pruning.latency.cost_models import File, Roofline
from pruning.latency.hardware import Hardware, Working
from pruning.latency.local import Local
from pruning.methods.baselines import Random
from pruning.methods.dense import Dense
from pruning.methods.flop.recipe import Recipe as Gates
from pruning.methods.slimgpt import SlimGPT
from pruning.methods.ziplm import ZipLM
from pruning.recovery.recipe import LocalRecipe, Lora, Loss, Recipe
from pruning.recovery.recovery import Training
from pruning.results.tracker import Tracker
from pruning.search.search import Calibrated, Guided, Schedule, Spdy
from pruning.tasks.task import Classification, QuestionAnswering, Task

# class, fields of it and of all that inherit them, a value that cannot be, words of the error
TABLE: list[tuple[type, str, Any, str]] = [
    (Experiment, "speedup", 0.5, "a number of at least 1"),
    (Experiment, "speedup", -2.0, "a number of at least 1"),
    (Experiment, "speedup", math.nan, "a number of at least 1"),
    (Experiment, "speedup", math.inf, "a number of at least 1"),
    (Experiment, "seed", -1, "at least 0"),
    (ZipLM, "damp", -0.1, "at least 0"),
    (ZipLM, "ridges", [-1.0, 1.0], "ascending and not negative"),
    (ZipLM, "ridges", [], "ascending and not negative"),
    (SlimGPT, "damp", -0.1, "at least 0"),
    (SlimGPT, "ridges", [1.0, 0.1], "ascending and not negative"),
    (SlimGPT, "ratio", 0.0, "above 0"),
    (SlimGPT, "ratio", 1.0, "below 1"),
    (SlimGPT, "largest smallest", 0, "at least 1"),
    (SlimGPT, "decay", -1, "at least 0"),
    (Dense, "speedup", 0.9, "at least 1"),
    (Gates, "sparsity warmup", 0.0, "above 0"),
    (Gates, "sparsity warmup", 1.0, "below 1"),
    (Gates, "clusters", [0.5, 0.1], "ascend between 0 and 1"),
    (Gates, "room", 0.9, "at least 1"),
    (Gates, "slope beta max_grad_norm", 0.0, "above 0"),
    (Gates, "learning_rate gate_learning_rate multiplier_learning_rate", 0.0, "above 0"),
    (Gates, "learning_rate", math.nan, "a finite number"),
    (Gates, "steps batch_size save_steps", 0, "at least 1"),
    (Gates, "penalty", -1.0, "at least 0"),
    (Hardware, "threads", 0, "at least 1"),
    (Working, "batch sequence_length alignment", 0, "at least 1"),
    (Working, "max_new_tokens", 1, "at least 2"),
    (File, "batch", 0, "at least 1"),
    (Local, "repetitions rounds", 0, "at least 1"),
    (Local, "tolerance noise", 0.0, "above 0"),
    (Local, "tolerance noise", 1.0, "below 1"),
    (Roofline, "flops", {"float32": 0.0}, "above 0"),
    (Roofline, "bandwidth", 0.0, "above 0"),
    (Roofline, "launch", -1.0, "at least 0"),
    (Calibration, "tokens sequence_length batch", 0, "at least 1"),
    (Calibration, "held_out", 0.0, "above 0"),
    (Calibration, "held_out", 1.0, "below 1"),
    (Guided, "tokens predictions", 0, "at least 1"),
    (Guided, "sequence_length", [None, 0], "at least 1"),
    (Guided, "sequence_length", [], "hold a length"),
    (Guided, "steps", -1, "at least 0"),
    (Guided, "mutation repeated", 1.1, "at most 1"),
    (Guided, "mutation repeated", -0.1, "at least 0"),
    (Spdy, "inits", 0, "at least 1"),
    (Calibrated, "anchors", [0.5, 1.5], "at most 1"),
    (Calibrated, "balances", [1.0, 0.0], "above 0"),
    (Calibrated, "draws", 0, "at least 1"),
    (Calibrated, "balances", [], "hold a factor"),
    (Schedule, "first last", -0.1, "at least 0"),
    (Schedule, "first last", 1.0, "below 1"),
    (Schedule, "first", 0.3, "not be above search.last"),
    (Perplexity, "window", [1], "hold sizes of at least 2 tokens"),
    (Perplexity, "window", [], "hold sizes of at least 2 tokens"),
    (Perplexity, "tokens", 2047, "fill a window of 2048"),
    (Perplexity, "characters", 0, "at least 1"),
    (LmEvalData, "shots", -1, "at least 0"),
    (QuestionData, "max_length stride max_answer_length", 0, "at least 1"),
    (Suite, "limit batch_size", 0, "at least 1"),
    (Suite, "seed samples", -1, "at least 0"),
    (Loss, "task logits hidden", -1.0, "at least 0"),
    (Loss, "temperature", 0.0, "above 0"),
    (Lora, "rank", 0, "at least 1"),
    (Lora, "alpha", 0.0, "above 0"),
    (Lora, "dropout", -0.1, "at least 0"),
    (Lora, "dropout", 1.0, "below 1"),
    (Recipe, "max_length steps tokens batch_size", 0, "at least 1"),
    (Recipe, "gradient_accumulation_steps save_steps eval_steps", 0, "at least 1"),
    (Recipe, "learning_rate minutes max_grad_norm", 0.0, "above 0"),
    (Recipe, "warmup_ratio", -0.1, "at least 0"),
    (Recipe, "warmup_ratio", 1.0, "below 1"),
    (Recipe, "weight_decay", -0.1, "at least 0"),
    (LocalRecipe, "epochs", 0, "at least 1"),
    (LocalRecipe, "learning_rate", 0.0, "above 0"),
    (LocalRecipe, "warmup_ratio", -0.1, "at least 0"),
    (LocalRecipe, "warmup_ratio", 1.0, "below 1"),
    (Training, "path", [2.0, 1.5], "ascending speedups of at least 1"),
    (Training, "path", [0.5], "ascending speedups of at least 1"),
    (Tracker, "timeout", 0.0, "above 0"),
    (Task, "max_length batch_size save_steps", 0, "at least 1"),
    (Task, "epochs learning_rate", 0.0, "above 0"),
    (Task, "seed", -1, "at least 0"),
    (Classification, "classes", 0, "at least 1"),
    (QuestionAnswering, "stride", 0, "at least 1"),
]
ANY = {(Random, "seed")}  # hashed
WHERE_READ = {(Text, "limit"), (Text, "start"), (Text, "stop")}  # tests/data/test_text.py


def parts(hint: Any) -> set[Any]:
    """Return the types that a hint is made of."""
    return set().union(*map(parts, get_args(hint))) if get_args(hint) else {hint}


def reached(kind: type) -> set[type]:
    """Return a dataclass and those in its fields."""
    hints = get_type_hints(kind)
    inner = {t for f in fields(kind) for t in parts(hints[f.name]) if is_dataclass(t)}
    return {kind}.union(*map(reached, inner))


KINDS = sorted(
    {
        kind
        for start in [Experiment, *(k for group in SCHEMAS.values() for k in group.values())]
        for kind in reached(start)
        if not isabstract(kind)
    },
    key=lambda kind: kind.__name__,
)
CASES = [
    (kind, name, value, words)
    for declared, names, value, words in TABLE
    for name in names.split()
    for kind in KINDS
    if issubclass(kind, declared)
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}-{case[2]}") for case in CASES],
)
def test_a_number_that_cannot_be_is_refused_by_its_name(kind, name, value, words):
    missing = {f.name: "???" for f in fields(kind) if f.default is f.default_factory}
    with pytest.raises(ValueError, match=r" must ") as error:
        kind(**(missing | {name: value}))
    said = str(error.value)
    assert said.startswith(f"{kind.where}.{name}={value} must ".removeprefix("."))
    assert words in said


def test_every_number_has_a_row():
    numbers = {
        (kind, f.name)
        for kind in KINDS
        for f in fields(kind)
        if parts(get_type_hints(kind)[f.name]) & {int, float}
    }
    rows = {(kind, name) for kind, name, _, _ in CASES} | ANY
    rows |= {(kind, name) for base, name in WHERE_READ for kind in KINDS if issubclass(kind, base)}
    unchecked, stale = numbers - rows, rows - numbers
    assert not unchecked, "check its range in __post_init__, and give it a row in TABLE"
    assert not stale, "a row of no field"
