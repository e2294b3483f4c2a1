"""Training a pruned model: it learns, it is done once, it goes on after a kill, it stays whole."""

import math
import subprocess
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pruning.data.text import Text
from pruning.models.shrink import factor_, shrink_
from pruning.models.sites import Kind, architecture, blocks, linears, projection, sites, weight
from pruning.recovery import worker
from pruning.recovery.recipe import Lora, Loss, LrSchedulerType
from pruning.recovery.recovery import Training
from pruning.recovery.stage import recovered
from pruning.recovery.student import DistillationTrainer
from pruning.recovery.train import Distillation, steps_of, train
from pruning.system import processes
from pruning.system.cache import Cache
from pruning.system.precision import Precision
from tests.helpers.families import ENCODERS, EVERY, llama
from tests.helpers.tiny import padded_batches

pytestmark = pytest.mark.job

ROWS = [row for batch in padded_batches(12) for row in batch.rows()]
DISTILL = Loss(task=0.0, logits=1.0, hidden=1.0, temperature=1.0, relative=True)
TASK = Loss(task=1.0, logits=0.0, hidden=0.0, temperature=1.0, relative=True)


def training(**values) -> Training:
    defaults = {
        "name": "distill", "loss": DISTILL, "lora": None, "path": [], "text": Text(""),
        "max_length": 12, "steps": 8, "tokens": None, "minutes": None, "batch_size": 4,
        "gradient_accumulation_steps": 1, "learning_rate": 0.003, "warmup_ratio": 0.1,
        "lr_scheduler_type": LrSchedulerType.linear, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "precision": Precision.float32, "gradient_checkpointing": False, "save_steps": 3,
        "eval_steps": None, "launcher": None,
    }  # fmt: skip
    return Training(**(defaults | values))


def half(model):
    """Cut half of every FFN, and the attention of the second block."""
    allocation = {}
    for site in sites(model):
        keep = torch.ones(site.units, dtype=torch.bool)
        if site.kind is Kind.FFN:
            keep[site.units // 2 :] = False
        elif site.block == 1:
            keep[:] = False
        allocation[site] = keep
    return shrink_(deepcopy(model), allocation)


def rows_for(family):
    if not architecture(EVERY[family]()).encoder:
        return ROWS
    return [row | {"labels": row["input_ids"][0] % 3} for row in ROWS]


def nothing(model):
    return {}


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "gpt2", "opt", "bert", "distilbert"])
def test_a_pruned_model_comes_nearer_to_the_dense_one_once(family, tmp_path, monkeypatch):
    dense, cache, rows = EVERY[family](), Cache(tmp_path), rows_for(family)
    pruned = half(dense)
    before = parameters(pruned), parameters(dense)
    rate = 0.0003 if family in ENCODERS else 0.001
    given = (
        training(steps=50, learning_rate=rate, batch_size=8),
        Distillation(pruned, dense, rows, 0),
        cache,
        nothing,
    )
    found = recovered(*given)
    losses = [entry["loss"] for entry in found.curve]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert found.curve[-1]["step"] == found.cost["steps"] == 50
    assert found.cost["tokens_per_s"] > 0
    for model, own in zip((pruned, dense), before, strict=True):  # as they were
        assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    assert not found.model.training
    monkeypatch.setattr("pruning.recovery.stage.train", None)  # is not needed any more
    again = recovered(*given)
    assert again.cost == found.cost
    for one, other in zip(again.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("lora", [None, Lora(2, 4.0, 0.0)], ids=["weights", "adapters"])
def test_a_killed_training_goes_on_and_ends_with_the_same_steps(lora, tmp_path, monkeypatch):
    dense = llama()
    pruned = half(dense)
    cache = Cache(tmp_path / "whole")
    whole = recovered(training(lora=lora), Distillation(pruned, dense, ROWS, 0), cache, nothing)

    class Killed(BaseException):
        """As good as kill -9 for what is on disk: nothing catches it."""

    normal, steps = DistillationTrainer.compute_loss, []

    def dies(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if self.state.global_step == 5 and not steps.count(3) > 1:
            raise Killed
        return normal(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", dies)
    given = (
        training(lora=lora),
        Distillation(pruned, dense, ROWS, 0),
        Cache(tmp_path / "half"),
        nothing,
    )
    with pytest.raises(Killed):
        recovered(*given)
    again = recovered(*given)
    assert steps == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    assert again.cost["steps"] == whole.cost["steps"] == 8
    assert again.cost["tokens"] == whole.cost["tokens"]
    assert [e["step"] for e in again.curve] == [e["step"] for e in whole.curve]
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_numbers_that_are_not_finite_keep_the_last_good_checkpoint(tmp_path):
    dense, recovery = llama(), training(learning_rate=1e30, save_steps=1)
    with pytest.raises(ValueError, match=r"^recovery\.learning_rate=.* at step \d+; lower it"):
        train(recovery, Distillation(half(dense), dense, ROWS, 0), tmp_path, nothing)
    kept = sorted(tmp_path.glob("checkpoint-*"))
    assert kept
    for path in kept:
        assert all(t.isfinite().all() for t in load_file(path / "model.safetensors").values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_adapters_are_merged_into_the_projections_and_nothing_else_changes(family, tmp_path):
    dense = EVERY[family]()
    pruned = half(dense)
    lora = training(
        name="lora", loss=TASK, lora=Lora(2, 4.0, 0.0), steps=40, learning_rate=0.001, batch_size=8
    )
    given = (Distillation(pruned, dense, rows_for(family), 0), Cache(tmp_path), nothing)
    found = recovered(lora, *given)
    losses = [entry["loss"] for entry in found.curve]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert list(parameters(found.model)) == list(parameters(pruned))
    adapted = {f"{index}.{s.module}" for s in linears(pruned) for index in [s.block]}
    assert len(adapted) == len(linears(pruned)) > 0
    changed = set()
    for site in linears(pruned):
        change = weight(projection(found.model, site)) - weight(projection(pruned, site))
        assert torch.linalg.matrix_rank(change, rtol=1e-3) == 2
        changed.add(id(projection(found.model, site).weight))
    for (name, one), other in zip(found.model.named_parameters(), pruned.parameters(), strict=True):
        assert id(one) in changed or torch.equal(one, other), name


def test_low_rank_projections_are_trained_and_adapted(tmp_path):
    dense = llama()
    pruned = deepcopy(dense)
    generator = torch.Generator().manual_seed(0)
    for site in linears(dense):
        rows, columns = weight(projection(dense, site)).shape
        A, B = (torch.randn(*size, generator=generator) / 8 for size in ((8, columns), (rows, 8)))
        factor_(pruned, site, A, B, None)
    for recovery in (training(steps=20), training(steps=20, lora=Lora(2, 4.0, 0.1))):
        found = recovered(recovery, Distillation(pruned, dense, ROWS, 0), Cache(tmp_path), nothing)
        assert found.curve[-1]["loss"] < found.curve[0]["loss"]
        for one, other in zip(blocks(found.model), blocks(pruned), strict=True):
            assert not torch.equal(one.self_attn.q_proj.A.weight, other.self_attn.q_proj.A.weight)


def test_weights_of_bfloat16_are_trained_in_float32(tmp_path):
    """Steps smaller than bfloat16 can write add up."""
    dense = llama().to(torch.bfloat16)
    recovery = training(learning_rate=2e-4, steps=10, precision=Precision.bfloat16)
    found = recovered(recovery, Distillation(half(dense), dense, ROWS, 0), Cache(tmp_path), nothing)
    assert found.model.dtype == torch.bfloat16
    whole = load_file(next(tmp_path.glob("recovery/*/parameters.safetensors")))
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32}
    for one, other in zip(found.model.buffers(), dense.buffers(), strict=True):
        assert torch.equal(one, other)  # the rotation of positions is never rounded
        assert one.dtype == other.dtype


@pytest.mark.parametrize("precision", [Precision.bfloat16, Precision.float32])
def test_student_and_teacher_compute_in_the_same_precision(precision, tmp_path):
    dense, seen = llama(), {True: set(), False: set()}
    student = half(dense)
    for model in (dense, student):
        model.lm_head.register_forward_hook(
            lambda module, args, out: seen[torch.is_grad_enabled()].add(out.dtype)
        )
    recovery = training(steps=2, precision=precision)
    recovered(recovery, Distillation(student, dense, ROWS, 0), Cache(tmp_path), nothing)
    assert seen[True] == seen[False] == {getattr(torch, precision)}


def test_two_passes_a_step_are_one_of_twice_the_rows(tmp_path):
    dense = llama()
    pruned = half(dense)
    rows = [{"input_ids": torch.randint(3, 128, (10,))} for _ in range(40)]
    one, two = (
        recovered(
            training(steps=5, batch_size=8 // passes, gradient_accumulation_steps=passes,
                     learning_rate=0.001),
            Distillation(pruned, dense, rows, 0), Cache(tmp_path / str(passes)), nothing,
        )
        for passes in (1, 2)
    )  # fmt: skip
    assert one.cost["tokens"] == two.cost["tokens"] == 5 * 8 * 10
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


class Clock:
    """A clock on which nothing but a step takes time: a second."""

    def __init__(self, monkeypatch):
        self.now, self.steps = 1000.0, 0
        normal = DistillationTrainer.compute_loss

        def ticking(*args, **kwargs):
            self.now, self.steps = self.now + 1, self.steps + 1
            return normal(*args, **kwargs)

        monkeypatch.setattr(DistillationTrainer, "compute_loss", ticking)
        monkeypatch.setattr("pruning.recovery.student.time", self)

    def monotonic(self) -> float:
        return self.now


def test_a_killed_training_has_the_minutes_that_are_left(tmp_path, monkeypatch):
    dense, clock = llama(), Clock(monkeypatch)
    recovery, pruned = training(steps=None, minutes=0.2, save_steps=2), half(dense)

    class Killed(BaseException):
        """As good as kill -9 for what is on disk: nothing catches it."""

    normal = DistillationTrainer.compute_loss

    def dies(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise Killed
        return normal(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "compute_loss", dies)
        with pytest.raises(Killed):
            train(recovery, Distillation(half(dense), dense, ROWS, 0), tmp_path, nothing)
    assert clock.steps == 5
    clock.now += 3600  # until somebody starts it again
    curve, cost = train(recovery, Distillation(pruned, dense, ROWS, 0), tmp_path, nothing)
    assert clock.steps == 5 + 8  # four of twelve seconds were spent at the last checkpoint
    assert cost["seconds"] == 12
    assert curve[-1]["step"] == cost["steps"] == 12


def test_a_budget_is_steps_tokens_or_minutes(tmp_path, monkeypatch):
    mean = sum(len(row["input_ids"]) for row in ROWS) / len(ROWS)
    by_tokens = training(steps=None, tokens=500, gradient_accumulation_steps=2)
    assert steps_of(by_tokens, ROWS) == -(-500 // (mean * 8))
    dense = llama()
    _, cost = train(
        by_tokens, Distillation(half(dense), dense, ROWS, 0), tmp_path / "tokens", nothing
    )
    assert 500 <= cost["tokens"] < 500 + 2 * 8 * 12
    by_time, clock = training(steps=None, minutes=0.05), Clock(monkeypatch)
    _, cost = train(
        by_time, Distillation(half(dense), dense, ROWS, 0), tmp_path / "minutes", nothing
    )
    assert cost["seconds"] == cost["steps"] == clock.steps == 3


def test_checkpointed_activations_give_the_same_steps(tmp_path):
    dense = llama()
    pruned = half(dense)
    one, other = (
        recovered(
            training(steps=3, gradient_checkpointing=c),
            Distillation(pruned, dense, ROWS, 0),
            Cache(tmp_path / str(c)),
            nothing,
        ).model
        for c in (False, True)
    )
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_student_is_watched_and_evaluations_do_not_count_as_time(tmp_path):
    seen = []

    def quality(model):
        seen.append(model)
        time.sleep(1)
        return {"suite/text/token_perplexity_12": float(len(seen))}

    dense = llama()
    given = (Distillation(half(dense), dense, ROWS, 0), Cache(tmp_path), quality)
    found = recovered(training(steps=6, eval_steps=3), *given)
    watched = [e for e in found.curve if "suite/text/token_perplexity_12" in e]
    assert [(e["step"], e["suite/text/token_perplexity_12"]) for e in watched] == [(3, 1), (6, 2)]
    assert len(seen) == 2
    assert found.cost["seconds"] < 2


def test_the_rate_rises_and_falls(tmp_path):
    dense = llama()
    at = (24 / 40 - 0.25) / 0.75  # of the fall, in front of step 25
    for shape, middle in (
        (LrSchedulerType.linear, 1 - at),
        (LrSchedulerType.cosine, (1 + math.cos(math.pi * at)) / 2),
    ):
        recovery = training(
            steps=40, warmup_ratio=0.25, lr_scheduler_type=shape, learning_rate=0.001
        )
        curve, _ = train(
            recovery, Distillation(half(dense), dense, ROWS, 0), tmp_path / shape, nothing
        )
        rates = {e["step"]: e["learning_rate"] / 0.001 for e in curve}
        assert max(rates, key=lambda step: rates[step]) in (10, 11)
        assert rates[25] == pytest.approx(middle, abs=1e-6)
        assert 0 < rates[40] < 0.05


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 10}, r"recovery\.steps=8, recovery\.tokens=10 must be one budget"),
        ({"steps": None}, r"recovery must be one budget"),
    ],
)
def test_one_budget_is_given(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        training(**values)


def test_a_loss_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^recovery\.loss: one of task, logits and hidden"):
        replace(DISTILL, logits=0.0, hidden=0.0)


def test_adapters_of_some_projections(tmp_path):
    dense, few = llama(), Lora(2, 4.0, 0.0, "mlp.*")
    given, cache = Distillation(half(dense), dense, rows_for("llama"), 0), Cache(tmp_path)
    found = recovered(training(name="lora", loss=TASK, lora=few, steps=4), given, cache, nothing)
    before = dict(half(dense).named_parameters())
    now = found.model.named_parameters()
    changed = {name for name, one in now if not torch.equal(one, before[name])}
    assert changed == {name for name in before if ".mlp." in name}
    with pytest.raises(ValueError, match=r"^recovery\.lora\.modules='h\.\*' fits no .*q_proj"):
        recovered(training(lora=Lora(2, 4.0, 0.0, "h.*"), steps=4), given, cache, nothing)


def test_rows_of_another_length_are_another_training(tmp_path):
    """The same tokens, cut into rows of 8 and of 16."""
    dense, cache = llama(), Cache(tmp_path)
    ids = torch.randint(3, 128, (64,), generator=torch.Generator().manual_seed(3))
    students = []
    for sequence in (8, 16):
        rows = [{"input_ids": row} for row in ids.view(-1, sequence)]
        recovery = training(steps=2, max_length=sequence)
        students.append(
            recovered(recovery, Distillation(half(dense), dense, rows, 0), cache, nothing).model
        )
    pairs = zip(*(student.parameters() for student in students), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_processes_of_a_training_compute_attention_as_the_job_does(tmp_path, monkeypatch):
    dense = llama()
    dense.set_attn_implementation("eager")
    seen = []

    def noted(recovery, given, *_):
        seen.extend(m.config._attn_implementation for m in (given.student, given.teacher))
        return [], {}

    def in_this_process(command, **_):
        worker.main(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(worker, "train", noted)
    monkeypatch.setattr(processes.subprocess, "run", in_this_process)
    recovered(
        training(launcher="processes"),
        Distillation(half(dense), dense, ROWS, 0),
        Cache(tmp_path),
        nothing,
    )
    assert seen == ["eager", "eager"]


def test_minutes_lead_as_far_as_the_machine_goes(tmp_path, monkeypatch):
    """A training by steps is one whatever the machine, a training by minutes is not."""
    dense = llama()
    pruned = half(dense)
    for budget, entries in (({"steps": 2}, 1), ({"steps": None, "minutes": 0.005}, 2)):
        cache = Cache(tmp_path / str(entries))
        for cpu in ("slow", "fast"):
            monkeypatch.setattr("pruning.system.environment.cpu", lambda cpu=cpu: cpu)
            recovered(training(**budget), Distillation(pruned, dense, ROWS, 0), cache, nothing)
        assert len(list(cache.root.glob("recovery/*/"))) == entries


def test_a_path_goes_through_the_targets_below():
    path = training(path=[1.25, 1.5, 2.0])
    assert [path.before(t) for t in (1.25, 1.5, 2.0, 3.0)] == [None, 1.25, 1.5, 2.0]
    assert [path.place(t) for t in (1.25, 1.5, 2.0, 3.0)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"^recovery\.path=.* speedup=null"):
        path.before(None)
