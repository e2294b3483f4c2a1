"""What a job does of numbers of the pruned model that are not finite."""

import logging
import math

import pytest
import torch

from pruning.evaluation.part import Measured
from pruning.evaluation.suite import Suite
from pruning.job.stages import evaluate_pruned
from pruning.models.loaded import LoadedModel
from pruning.system.cache import Cache
from tests.helpers.families import llama
from tests.helpers.tiny import job_with, word_tokenizer

NOTHING = Suite("none", None, {}, {}, None, 1)


def test_a_pruned_model_with_a_weight_that_is_not_finite_is_not_kept(tmp_path):
    model = llama()
    dense = LoadedModel(model, word_tokenizer())
    with torch.no_grad():
        model.get_submodule("model.layers.2.mlp.down_proj").weight[3, 4] = math.inf  # type: ignore
    said = r"pruned model: not finite as float32: model.layers.2.mlp.down_proj.weight \(1 of 6144"
    with pytest.raises(ValueError, match=said):
        evaluate_pruned(NOTHING, model, dense, job_with(Cache(tmp_path)))


def test_a_metric_that_is_not_finite_is_said(tmp_path, monkeypatch, caplog):
    numbers = {"a/acc": 0.5, "a/acc_stderr": math.nan, "text/token_perplexity_32": math.inf}
    model = llama()
    dense = LoadedModel(model, word_tokenizer())
    monkeypatch.setattr(Suite, "evaluate", lambda *_: Measured(numbers, {}))
    with caplog.at_level(logging.WARNING):
        evaluate_pruned(NOTHING, model, dense, job_with(Cache(tmp_path)))
    (line,) = caplog.messages
    assert line.endswith("of no use: text/token_perplexity_32 is inf")
