"""Held-out moments that are taken again, against those that are stored."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pruning.calibration.calibration import Calibration, Stored, Weight
from pruning.calibration.moments import Moments, stored_bytes
from pruning.methods.svd import SVD
from pruning.methods.ziplm import Score
from pruning.models.blockwise import State
from pruning.models.loaded import LoadedModel
from pruning.models.sites import Kind, linears, sites
from pruning.models.source import Model
from pruning.models.streamed import keep_blocks_in_, weights
from pruning.search.search import Calibrated
from pruning.solver.levels import Levels
from pruning.system.cache import Cache
from tests.helpers.families import EVERY, llama
from tests.helpers.tiny import (
    INF,
    job_with,
    linear_table,
    padded_batches,
    pruning_context,
    text,
    word_tokenizer,
    ziplm,
)

BATCHES = padded_batches(9)
CPU = torch.device("cpu")


def storing(stored: Stored) -> Calibration:
    """Make a calibration that weighs tokens as by default."""
    options = text()
    options.stored, options.weight = stored, Weight.residual
    return options


def collected(model, stored: Stored, root: Path, prunable=None) -> Moments:
    """Collect moments."""
    options = storing(stored)
    dense = LoadedModel(model, word_tokenizer())
    return Moments.collect(dense, BATCHES, options, prunable or sites(model), Cache(root))


def tensors(moments: Moments, site) -> list[Tensor]:
    """Return what a split has, and its share."""
    split = moments.split(site, CPU)
    both = [getattr(m, name) for m in (split.fit, split.held) for name in ("H", "mean", "variance")]
    return [*both, torch.tensor(split.share)]


@pytest.mark.parametrize("family", EVERY)
def test_they_are_the_stored_ones_to_the_last_bit(family, tmp_path):
    model = EVERY[family]()
    whole, half = (collected(model, kind, tmp_path / kind) for kind in (Stored.both, Stored.fit))
    written = [sum(f.stat().st_size for f in m.directory.glob("block*")) for m in (whole, half)]
    routed = any(site.kind is Kind.EXPERTS for site in sites(model))  # samples of tokens stay
    assert written[1] < written[0] if routed else written[1] < 0.56 * written[0]  # headers too
    parts = [one for site in sites(model) for one in site.each]
    for site in [*parts, *parts[::-1], parts[0], parts[-1]]:  # in any order
        for again, stored in zip(tensors(half, site), tensors(whole, site), strict=True):
            assert torch.equal(again, stored)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen3_moe"])
@torch.no_grad()
def test_levels_and_weights_are_the_same(family, tmp_path):
    model, cache = EVERY[family](), Cache(tmp_path)
    table, method = linear_table(model, 8), ziplm(Score.auto, [0.01, 0.1, INF])
    both = [collected(model, kind, tmp_path / kind) for kind in (Stored.both, Stored.fit)]
    assert both[0].identity == both[1].identity  # what is solved from them is the same
    stages = cache, Cache(tmp_path / "other")
    whole, half = (
        Levels.from_moments(model, m, method, table, stage)
        for m, stage in zip(both, stages, strict=True)
    )
    assert [*whole] == [*half]
    for site, levels in whole.items():
        assert torch.equal(levels.keeps, half[site].keeps)
        assert (levels.loss, levels.ridge, levels.score) == (
            half[site].loss,
            half[site].ridge,
            half[site].score,
        )
    choice = [len(levels.shapes) // 2 for levels in whole.values()]
    pruned, again = (levels.cut(model, choice)[0].state_dict() for levels in (whole, half))
    assert pruned.keys() == again.keys()
    assert all(torch.equal(again[name], values) for name, values in pruned.items())


@pytest.mark.parametrize("resident", [True, False])
def test_a_job_builds_the_same_model_also_one_block_at_a_time(resident, tmp_path):
    llama().save_pretrained(tmp_path / "model", max_shard_size="60KB")
    word_tokenizer().save_pretrained(tmp_path / "model")
    source = Model(name="x", path=str(tmp_path / "model"), resident=resident)
    made = {}
    for stored in (Stored.both, Stored.fit):
        model, _ = source.load(Cache(tmp_path), CPU)
        keep_blocks_in_(model, tmp_path / f"blocks-{stored}")
        search = Calibrated(tokens=64, balances=[1.0], steps=2)
        given = search, job_with(Cache(tmp_path / stored)), storing(stored)
        context = pruning_context(model, BATCHES, *given)
        plan = ziplm(Score.obs, [0.1]).plan(context)
        shapes = plan.choose(context.table.budget(1.5))
        first = plan.build(shapes)[0]
        if not resident:  # blocks of an earlier start are not pruned again
            (file,) = (tmp_path / f"blocks-{stored}").glob("*001*")
            file.unlink()
        pruned = plan.build(shapes)[0]
        made[stored] = dict(weights(pruned))
        assert all(torch.equal(made[stored][n], values) for n, values in weights(first))
    assert all(torch.equal(made[Stored.fit][n], values) for n, values in made[Stored.both].items())


def test_ranks_are_found_with_them(tmp_path):
    model = llama()
    method, prunable = SVD(), linears(model)
    table = linear_table(model)
    table.parts = {site.part: {site.whole: 1.0, site.gone: 0.0} for site in prunable}
    losses = {}
    for kind in (Stored.both, Stored.fit):
        moments = collected(model, kind, tmp_path / kind, prunable)
        solved = Levels.from_moments(model, moments, method, table, Cache(tmp_path / kind))
        losses[kind] = {site: levels.loss for site, levels in solved.items()}
    assert losses[Stored.both] == losses[Stored.fit]


def test_a_pass_that_was_interrupted_starts_anew(tmp_path, monkeypatch):
    model = llama()
    whole, half = (collected(model, kind, tmp_path / kind) for kind in (Stored.both, Stored.fit))
    last, real, left = sites(model)[-1], State.advance, [4]

    def advance(self, index, block):
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError
        return real(self, index, block)

    monkeypatch.setattr(State, "advance", advance)
    with pytest.raises(MemoryError):
        half.split(last, CPU)
    for again, stored in zip(tensors(half, last), tensors(whole, last), strict=True):
        assert torch.equal(again, stored)


def test_nothing_stays_in_memory_when_levels_are_solved_or_cut(tmp_path):
    model = llama()
    moments = collected(model, Stored.fit, tmp_path)
    table, method = linear_table(model, 8), ziplm(Score.obs, [0.1])
    levels = Levels.from_moments(model, moments, method, table, Cache(tmp_path))
    for _ in range(2):
        assert not moments.retaken._states
        assert not moments.retaken._moments
        levels.cut(model, [0, 1, 0, 0, 0, 0])


def test_whole_moments_that_are_there_are_used(tmp_path):
    model = llama()
    whole = collected(model, Stored.both, tmp_path)
    assert collected(model, Stored.fit, tmp_path).directory == whole.directory


def test_those_of_a_llama_2_7b_take_at_most_9_gb():
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    with torch.device("meta"):
        prunable = sites(LlamaForCausalLM(config))
    assert stored_bytes(prunable, 4096, Stored.both) > 17e9
    assert stored_bytes(prunable, 4096, Stored.auto) <= 9e9
    # of the upper triangles alone, in float32: 8.83 GB
    assert stored_bytes(prunable, 4096, Stored.fit) >= 32 * 4 * (4096**2 + 11008**2) / 2


def test_small_models_keep_both(tmp_path):
    moments = collected(llama(), Stored.auto, tmp_path)
    assert moments.retaken is None
    assert moments.directory == collected(llama(), Stored.both, tmp_path).directory


def test_what_is_said_of_the_disk_is_what_is_written(tmp_path):
    model = llama()
    moments = collected(model, Stored.fit, tmp_path)
    written = sum(file.stat().st_size for file in moments.directory.glob("*.safetensors"))
    needed = stored_bytes(sites(model), 64, Stored.fit)
    assert needed <= written <= needed + 3 * 2000  # headers of three files


def test_weights_that_stay_need_none(tmp_path, monkeypatch):
    model = llama()
    moments = collected(model, Stored.fit, tmp_path)
    table, method = linear_table(model, 8), ziplm(Score.wanda, [INF])
    levels = Levels.from_moments(model, moments, method, table, Cache(tmp_path))
    monkeypatch.setattr(moments.retaken, "moment", lambda *_: pytest.fail("a pass for nothing"))
    levels.cut(model, [1] * len(levels))
