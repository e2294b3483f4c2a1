"""Local reconstruction against hidden states that transformers gives."""

from copy import deepcopy

import pytest
import torch

from pruning.models.shrink import shrink_
from pruning.models.sites import architecture, blocks, sites
from pruning.recovery import local
from pruning.recovery.local import Reconstruction
from pruning.recovery.recipe import LocalRecipe
from pruning.recovery.stage import reconstructed
from pruning.system.cache import Cache
from pruning.system.precision import Precision
from tests.helpers.families import EVERY
from tests.helpers.tiny import padded_batches
from tests.recovery.test_stage import half, parameters

BATCHES = padded_batches(12)


def recipe(**values) -> LocalRecipe:
    return LocalRecipe(
        **({"epochs": 3, "learning_rate": 0.003, "precision": Precision.float32} | values)
    )


READS = {  # what the FFN of block 1 reads, whose attention is gone: by a norm, behind it or before
    "llama": ("model.layers.1.post_attention_layernorm", False),
    "gpt2": ("transformer.h.1.ln_2", False),
    "opt": ("model.decoder.layers.1.final_layer_norm", False),
    "phi3": ("model.layers.1.post_attention_layernorm", False),
    "gemma3": ("model.layers.1.pre_feedforward_layernorm", False),
    "bert": ("bert.encoder.layer.1.attention.output.LayerNorm", True),
    "distilbert": ("distilbert.transformer.layer.1.sa_layer_norm", True),
}  # gpt_neox's reads what its attention does


@torch.no_grad()
def errors(family, student, teacher) -> list[float]:
    """Return the mean relative error of the stream behind each block, but for the last.

    Behind block 0 it is compared with the dense one where the FFN of block 1 reads it.
    """
    totals: list[list[float]] = []
    for batch in (b for b in BATCHES if b.held_out):
        given, seen = batch.inputs(student.device) | {"output_hidden_states": True}, []
        if family in READS:
            path, behind = READS[family]
            hook = teacher.get_submodule(path).register_forward_hook(
                lambda m, args, out, seen=seen, behind=behind: seen.append(
                    out if behind else args[0]
                )
            )
        y, x = (model(**given).hidden_states[1:] for model in (student, teacher))
        if family in READS:
            hook.remove()
            x = [seen[0].reshape(x[0].shape), *x[1:]]
        real = batch.mask.bool()
        pairs = [(a[real].double(), b[real].double()) for a, b in zip(y, x, strict=True)]
        totals.append(
            [float(((a - b).square().sum(1) / b.square().sum(1)).mean()) for a, b in pairs]
        )
    means = [sum(column) / len(column) for column in zip(*totals, strict=True)]
    return means if architecture(teacher).encoder else means[:-1]  # the last is behind a norm


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "opt", "phi3", "gemma3", "gpt_neox", "bert", "distilbert"]
)
def test_each_block_comes_nearer_to_the_dense_stream(family, tmp_path):
    dense = EVERY[family]()
    pruned = half(dense)
    before = parameters(pruned), parameters(dense)
    found = reconstructed(recipe(), Reconstruction(pruned, dense, BATCHES, 0), Cache(tmp_path))
    after, at_first = errors(family, found.model, dense), errors(family, pruned, dense)
    assert [entry["after"] for entry in found.curve][: len(after)] == pytest.approx(after, rel=1e-3)
    # the first block alone reads what it read before
    assert found.curve[0]["before"] == pytest.approx(at_first[0], rel=1e-3)
    assert all(now < first for now, first in zip(after, at_first, strict=True))
    for entry in found.curve:
        assert entry["after"] <= entry["before"]
    for model, own in zip((pruned, dense), before, strict=True):  # as they were
        assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    fit = [batch for batch in BATCHES if not batch.held_out]
    assert found.cost["tokens"] == 3 * sum(batch.tokens for batch in fit)
    assert found.cost["steps"] == 3 * len(fit)


@torch.no_grad()
def test_a_block_takes_over_all_that_is_gone_behind_it(tmp_path):
    """Blocks 1 and 2 are gone: block 0 aims at the stream that leaves the last of them."""
    dense = EVERY["llama"]()
    left = {s: torch.full((s.units,), s.block == 0) for s in sites(dense)}
    left[sites(dense)[1]][::2] = False
    pruned = shrink_(deepcopy(dense), left)
    given = Reconstruction(pruned, dense, BATCHES, 0)
    with torch.enable_grad():
        found = reconstructed(recipe(), given, Cache(tmp_path))
    total = []
    for batch in (b for b in BATCHES if b.held_out):
        behind = []
        hook = dense.model.layers[2].register_forward_hook(
            lambda m, args, out, behind=behind: behind.append(out)
        )
        dense(**batch.inputs(dense.device))
        hook.remove()
        y = found.model(**batch.inputs(dense.device), output_hidden_states=True).hidden_states[1]
        real = batch.mask.bool()
        a, b = y[real].double(), behind[0][real].double()
        total.append(float(((a - b).square().sum(1) / b.square().sum(1)).mean()))
    assert found.curve[0]["after"] == pytest.approx(sum(total) / len(total), rel=1e-3)
    assert found.curve[0]["after"] < found.curve[0]["before"]
    assert [entry["epoch"] for entry in found.curve[1:]] == [0, 0]


def test_what_does_not_help_on_held_out_text_is_not_kept(tmp_path):
    dense = EVERY["llama"]()
    pruned = half(dense)
    wild = recipe(learning_rate=1e3, epochs=1)
    found = reconstructed(wild, Reconstruction(pruned, dense, BATCHES, 0), Cache(tmp_path))
    assert {entry["epoch"] for entry in found.curve} == {0}
    for own, kept in zip(pruned.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(own, kept)


def test_a_killed_one_goes_on_with_the_blocks_that_are_done(tmp_path, monkeypatch):
    dense = EVERY["llama"]()
    given = Reconstruction(half(dense), dense, BATCHES, 0)
    whole = reconstructed(recipe(), given, Cache(tmp_path / "whole"))

    class Killed(BaseException):
        """As good as kill -9 for what is on disk: nothing catches it."""

    done: list[int] = []
    fit = local._fit

    def counted(recipe, streams, index, block, seed):
        if len(done) == 1:
            raise Killed
        done.append(index)
        return fit(recipe, streams, index, block, seed)

    cache = Cache(tmp_path / "killed")
    monkeypatch.setattr(local, "_fit", counted)
    with pytest.raises(Killed):
        reconstructed(recipe(), given, cache)
    monkeypatch.setattr(local, "_fit", lambda *a: done.append(a[2]) or fit(*a))
    again = reconstructed(recipe(), given, cache)
    assert done == [*range(len(blocks(dense)))]  # none twice
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    timeless = [[{**e, "seconds": 0} for e in found.curve] for found in (whole, again)]
    assert timeless[0] == timeless[1]
    assert not [*(tmp_path / "killed" / "checkpoints").glob("*")]


def test_padding_has_no_part(tmp_path):
    dense = EVERY["llama"]()
    given = Reconstruction(half(dense), dense, BATCHES, 0)
    changed = deepcopy(BATCHES)
    for batch in changed:
        batch.ids[batch.mask == 0] = 7
    one = reconstructed(recipe(epochs=1), given, Cache(tmp_path / "one"))
    other = reconstructed(
        recipe(epochs=1), Reconstruction(given.student, dense, changed, 0), Cache(tmp_path / "two")
    )
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
