"""Training in shards (FSDP): as one process trains, also after a kill; what is refused."""

import sys
from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.models import checkpoint
from pruning.models.shrink import shrink_
from pruning.models.sites import Kind, sites
from pruning.recovery import shards
from pruning.recovery.recipe import Lora
from pruning.recovery.stage import recovered
from pruning.recovery.train import Distillation
from pruning.system.cache import Cache
from tests.helpers.families import llama
from tests.recovery.test_stage import nothing, training

SHARDS = f"{sys.executable} -m accelerate.commands.launch --use_fsdp --num_processes 2"
STEP = "pruning.recovery.student:DistillationTrainer.compute_loss"
LEFT = {  # units of every site that differs from the dense model
    (0, Kind.FFN): 47, (1, Kind.ATTENTION): 0, (1, Kind.FFN): 33, (2, Kind.ATTENTION): 1,
    (2, Kind.FFN): 0,
}  # fmt: skip


def uneven(model, left):
    """Cut every site to the number of units that is left of it."""
    allocation = {}
    for site in sites(model):
        keep = torch.zeros(site.units, dtype=torch.bool)
        keep[: left.get((site.block, site.kind), site.units)] = True
        allocation[site] = keep
    return shrink_(deepcopy(model), allocation)


@pytest.fixture
def rows(monkeypatch):
    """Rows of one length, so that means over processes are those of one; on CPUs alone."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 128, (10,), generator=draw)} for _ in range(40)]


def losses(recovered_model):
    return [entry["loss"] for entry in recovered_model.curve if "loss" in entry]


@pytest.mark.job
def test_shards_learn_as_one_process_does_and_go_on_after_a_kill(rows, tmp_path):
    options = {"steps": 6, "save_steps": 2, "learning_rate": 0.001, "batch_size": 4}

    def train(name, launcher):
        dense = llama()  # as a job loads it, which was written nowhere yet
        given = Distillation(uneven(dense, LEFT), dense, rows, 0)
        return recovered(
            training(**options, launcher=launcher), given, Cache(tmp_path / name), nothing
        )

    def deadly(call):
        return train("two", f"{SHARDS} -m tests.helpers.deadly {STEP} {call}")

    one = train("one", None)

    with pytest.raises(ValueError, match=r"^recovery\.launcher=.* ended with code 1: "):
        deadly(4)  # a step after a checkpoint
    (kept,) = (tmp_path / "two" / "checkpoints").glob("*/shards/checkpoint-*")
    assert kept.name == "checkpoint-2"
    two = deadly(5)  # four steps are left: a fifth would kill it
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert len(losses(two)) == two.cost["steps"] == 6
    assert two.cost["tokens"] == 6 * 4 * 10
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)

    checkpoint.save(two.model, None, tmp_path / "model", "")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    ids = rows[0]["input_ids"][None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, two.model(ids).logits)


@pytest.mark.job
def test_adapters_in_shards_where_a_block_is_gone(rows, tmp_path):
    dense = llama()
    pruned = uneven(dense, LEFT | {(1, Kind.FFN): 0})
    options = {"steps": 2, "lora": Lora(dropout=0.0), "gradient_accumulation_steps": 2}
    options |= {"batch_size": 2, "gradient_checkpointing": True}
    one, two = (
        recovered(
            training(**options, launcher=launcher),
            Distillation(pruned, dense, rows, 0),
            Cache(tmp_path / str(launcher is None)),
            nothing,
        )
        for launcher in (None, SHARDS)
    )
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_what_does_not_go_with_shards_is_refused(monkeypatch):
    student = llama()
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    with pytest.raises(ValueError, match=r"^recovery\.launcher: .*recovery\.gradient_checkpo"):
        shards.prepare_(student)
    student.config.embedding_clusters = {"sizes": [128], "ranks": [4], "tied": True}
    with pytest.raises(ValueError, match=r"^recovery\.launcher: an embedding in clusters"):
        shards.prepare_(student)
