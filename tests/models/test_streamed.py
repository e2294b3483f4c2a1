"""A model whose blocks stay in files does all that a resident one does, to the last bit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pruning.calibration.calibration import Target
from pruning.calibration.moment import Accumulator
from pruning.evaluation.perplexity import token_perplexity
from pruning.latency.grid import widths
from pruning.latency.table import LatencyTable
from pruning.methods.baselines import Flap, WandaSp
from pruning.methods.depth import Depth
from pruning.methods.method import Method
from pruning.methods.slimgpt import SlimGPT
from pruning.methods.svd import SVD
from pruning.methods.ziplm import Score
from pruning.models import checkpoint
from pruning.models.sites import Allocation, blocks, projection, sites, weight
from pruning.models.source import Model, fingerprint
from pruning.models.stand_in import timed
from pruning.models.streamed import is_closed, is_streamed, keep_blocks_in_, opened, weights
from pruning.search.search import Calibrated, NoSearch, Schedule, Search
from pruning.system.cache import Cache
from pruning.system.precision import Precision
from tests.helpers.families import FAMILIES, ROUTING, llama
from tests.helpers.tiny import (
    INF,
    job_with,
    padded_batches,
    pruning_context,
    text,
    word_tokenizer,
    ziplm,
)

CPU = torch.device("cpu")
BATCHES = padded_batches(9)


def written(model: PreTrainedModel, directory: Path) -> Path:
    """Write a model as several shards, with a tokenizer."""
    model.save_pretrained(directory, max_shard_size="60KB")
    word_tokenizer().save_pretrained(directory)
    return directory


def load(directory: Path, resident: bool | None) -> PreTrainedModel:
    """Load a checkpoint, and say where blocks are written."""
    source = Model(name="x", path=str(directory), resident=resident)
    model, _ = source.load(Cache(directory / "cache"), CPU)
    keep_blocks_in_(model, directory.parent / "blocks")
    return model


@pytest.fixture
def two(tmp_path):
    """Return a resident and a streamed llama of the same checkpoint."""
    where = written(llama(), tmp_path / "model")
    return load(where, True), load(where, False)


def search() -> Search:
    return Calibrated(tokens=64, balances=[1.0, 2.0], steps=2, precision=Precision.float32)


@dataclass
class Case:
    """A method with its search, and the targets of its weight update."""

    method: Method
    search: Search
    target: Target = Target.local
    updates: Sequence[dict[str, Any]] = ()  # once it has pruned: how weights were solved

    def prune(self, model, cache: Path, speedup: float = 1.5) -> tuple[PreTrainedModel, Allocation]:
        """Prune by a linear table."""
        given = self.search, job_with(Cache(cache)), text(self.target)
        context = pruning_context(model, BATCHES, *given)
        plan = self.method.plan(context)
        shapes = plan.choose(context.table.budget(speedup))
        assert shapes is not None
        made = plan.build(shapes)
        self.updates = plan.updates
        return made


CASES = {
    "ziplm": lambda: Case(ziplm(Score.obs, [0.1, INF]), search()),
    "compensated": lambda: Case(replace(ziplm(Score.obs, [0.1]), compensate=True), search()),
    "behind": lambda: Case(ziplm(Score.obs, [0.1]), search(), Target.dense),
    "damped": lambda: Case(ziplm(Score.obs, [0.1, 1, INF]), search(), Target.damped),
    "slimgpt": lambda: Case(SlimGPT(smallest=8, decay=0, ridges=[0.1]), Schedule()),
    "wanda_sp": lambda: Case(WandaSp(), search()),
    "flap": lambda: Case(Flap(), search()),  # adds biases
    "depth": lambda: Case(Depth(), NoSearch()),
}


@pytest.mark.parametrize("family", ROUTING)
def test_experts_are_refused_in_one_line(family, tmp_path):
    where = written(FAMILIES[family](), tmp_path / "model")
    with pytest.raises(ValueError, match=r"^model\.path=.* experts are not pruned one block at a"):
        load(where, False)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {*ROUTING}))
@torch.no_grad()
def test_every_family_is_read_as_transformers_reads_it(family, tmp_path):
    model = FAMILIES[family]()
    where = written(model, tmp_path / "model")
    resident, streamed = load(where, True), load(where, False)
    assert is_streamed(streamed)
    assert not is_streamed(resident)
    assert fingerprint(streamed) == fingerprint(resident)
    assert streamed.generation_config == resident.generation_config
    inputs = BATCHES[0].inputs(CPU)
    assert torch.equal(streamed(**inputs).logits, resident(**inputs).logits)
    assert all(map(is_closed, blocks(streamed)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_method_prunes_it_as_a_resident_one(case, family, tmp_path):
    where = written(FAMILIES[family](), tmp_path / "model")
    resident, streamed = load(where, True), load(where, False)
    cases = CASES[case](), CASES[case]()
    expected, kept = cases[0].prune(resident, tmp_path / "a")
    pruned, allocation = cases[1].prune(streamed, tmp_path / "b")
    assert cases[0].updates == cases[1].updates
    assert bool(cases[0].updates) is (case in ("behind", "damped", "slimgpt"))
    assert kept.keys() == allocation.keys()
    assert all(torch.equal(keep, allocation[site]) for site, keep in kept.items())
    assert sum(not keep.all() for keep in kept.values()) > 1
    same(pruned, expected)
    for model in (streamed, pruned):
        assert all(is_closed(b) for b in blocks(model) if next(b.parameters(), None) is not None)
    assert fingerprint(streamed) == fingerprint(resident)
    checkpoint.save(pruned, word_tokenizer(), tmp_path / "out", "")
    same(checkpoint.load(tmp_path / "out", torch.float32, CPU), expected)


@torch.no_grad()
def same(model: PreTrainedModel, expected: PreTrainedModel) -> None:
    """Compare the weights of two models, and their logits."""
    ours, theirs = dict(weights(model)), dict(weights(expected))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    inputs = BATCHES[0].inputs(CPU)
    assert torch.equal(model(**inputs).logits, expected(**inputs).logits)


class Killed(Exception):
    """What a test ends a job by."""


def dying(function, calls: int):
    """Let a function end the job at a call."""
    left = [calls]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return function(*args, **kwargs)

    return call


def noting(function, calls: list[int]):
    """Let a function note its calls."""

    def call(*args, **kwargs):
        calls.append(0)
        return function(*args, **kwargs)

    return call


def test_moments_go_on_at_the_block_where_they_were(two, tmp_path, monkeypatch):
    _, streamed = two
    expected, _ = CASES["ziplm"]().prune(streamed, tmp_path / "a")
    whole = Accumulator.mean
    monkeypatch.setattr(Accumulator, "mean", dying(whole, 10))  # in the last of three blocks
    with pytest.raises(Killed):
        CASES["ziplm"]().prune(streamed, tmp_path / "b")
    calls: list[int] = []
    monkeypatch.setattr(Accumulator, "mean", noting(whole, calls))
    pruned, _ = CASES["ziplm"]().prune(streamed, tmp_path / "b")
    assert len(calls) == 4  # of two sites, to fit and held out
    same(pruned, expected)
    assert not [*(tmp_path / "b" / "checkpoints").glob("*/*")]


@pytest.mark.parametrize(
    ("case", "function", "each"),
    [
        ("ziplm", "pruning.solver.levels.set_weight_", 2),
        ("flap", "pruning.solver.levels.set_weight_", 2),
        ("slimgpt", "pruning.methods.sequential.check_finite", 2),
        ("behind", "pruning.methods.sequential.check_finite", 2),
        ("damped", "pruning.methods.sequential.check_finite", 2),
    ],
)
def test_pruned_blocks_are_not_pruned_again(case, function, each, two, tmp_path, monkeypatch):
    resident, streamed = two
    whole, resumed = CASES[case](), CASES[case]()
    expected, kept = whole.prune(resident, tmp_path / "cache", 2.0)
    module, _, name = function.rpartition(".")
    real = getattr(import_module(module), name)
    counted: list[int] = []
    with monkeypatch.context() as patch:  # levels are there: what is called is the cut alone
        patch.setattr(function, noting(real, counted))
        CASES[case]().prune(resident, tmp_path / "cache", 2.0)
    monkeypatch.setattr(function, dying(real, len(counted)))
    with pytest.raises(Killed):
        CASES[case]().prune(streamed, tmp_path / "cache", 2.0)
    again: list[int] = []
    monkeypatch.setattr(function, noting(real, again))
    pruned, allocation = resumed.prune(streamed, tmp_path / "cache", 2.0)
    assert resumed.updates == whole.updates  # also of blocks from before
    assert 0 < len(again) <= each < len(counted)
    assert all(torch.equal(keep, allocation[site]) for site, keep in kept.items())
    same(pruned, expected)


def test_an_opened_block_is_closed_by_who_opened_it(two):
    block = blocks(two[1])[1]
    with opened(block), opened(block):
        assert not is_closed(block)
        with opened(block):
            pass
        assert not is_closed(block)
    assert is_closed(block)
    with pytest.raises(Killed), opened(block):
        raise Killed
    assert is_closed(block)


def test_perplexity_is_that_of_the_resident_model(two, monkeypatch):
    monkeypatch.setattr("pruning.evaluation.perplexity.STATES", 2 * 2 * 16 * 64 * 4)
    tokens = torch.randint(3, 128, (165,), generator=torch.Generator().manual_seed(0))
    resident, streamed = (token_perplexity(model, tokens, 16, 2) for model in two)
    assert streamed == pytest.approx(resident, rel=1e-6)


def test_what_is_timed_has_its_shapes_and_little_memory(two, monkeypatch):
    resident, streamed = two
    assert timed(resident) is resident
    monkeypatch.setattr("pruning.models.stand_in.LEAST", 1)
    made = timed(streamed)
    assert not is_streamed(made)
    assert [p.shape for p in made.parameters()] == [p.shape for p in resident.parameters()]
    storages = {p.untyped_storage().data_ptr() for p in blocks(made).parameters()}
    assert len(storages) == len([*blocks(made)[0].parameters()])
    made(input_ids=BATCHES[0].ids)
    site = sites(streamed)[0]
    assert weight(projection(streamed, site)).is_meta  # it is as it was
    assert is_streamed(streamed)


def test_a_shard_that_is_gone_or_cut_short_is_one_line(tmp_path):
    where = written(llama(), tmp_path / "model")
    model = load(where, False)
    shard = blocks(model)[1].source.places["mlp.down_proj.weight"].file  # type: ignore
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model-.*safetensors is damaged"):
        load(where, False)
    with pytest.raises(ValueError, match=r"is damaged \(\d+ bytes are missing\)"):
        model(input_ids=BATCHES[0].ids)
    assert all(map(is_closed, blocks(model)))
    shard.unlink()
    with pytest.raises(ValueError, match=r"is missing, and .* names it"):
        load(where, False)
    with pytest.raises(ValueError, match=r"safetensors cannot be read \(No such file"):
        model(input_ids=BATCHES[0].ids)


def test_weights_that_are_not_there_are_named(tmp_path):
    where = written(llama(), tmp_path / "model")
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match=r"differ: the file lacks model\.layers\.3"):
        load(where, False)
    (where / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"the model has no place for model\.layers\.2"):
        load(where, False)
    (where / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    with pytest.raises(ValueError, match=r"another shape has .*of \(.*where config.json says"):
        load(where, False)


def test_a_model_is_streamed_where_two_do_not_fit(tmp_path, monkeypatch):
    where = written(llama(), tmp_path / "model")
    size = sum(p.numel() * 4 for p in llama().parameters())
    for there, streamed in ((2 * size, False), (2 * size - 1, True)):
        monkeypatch.setattr("pruning.system.memory.available", lambda device, n=there: n)
        assert is_streamed(load(where, None)) is streamed


def test_projections_become_products_block_by_block(two, tmp_path):
    method, outs = SVD(modules="*.down_proj"), []
    for model, where in zip(two, ("a", "b"), strict=True):
        prunable = method.sites(model)
        ms = {left: left.units / 64 for left in widths(prunable[0].units, 8)[:-1]}
        context = pruning_context(model, BATCHES, search(), job_with(Cache(tmp_path / where)))
        context.table = LatencyTable({"mlp.down_proj": ms}, 1.0, 3, 1.0, 4.0)
        plan = method.plan(context)
        shapes = plan.choose(context.table.budget(1.5))
        assert shapes is not None
        outs.append(plan.build(shapes)[0])
        assert is_streamed(outs[-1]) is is_streamed(model)
    same(outs[1], outs[0])
