"""Moments against float64 sums over what hooks see in the model's own forward pass."""

import weakref

import pytest
import torch

from pruning.calibration.calibration import Weight
from pruning.calibration.moments import Accumulator, Moments, Split, collect
from pruning.models.sites import Kind, sites
from tests.families import FAMILIES, llama
from tests.tiny import padded_batches

OUTPUTS = {  # family: its blocks, and the output projections in a block
    "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "opt": ("model.decoder.layers", "self_attn.out_proj", "fc2"),
}
LLAMA = ("model.layers", "self_attn.o_proj", "mlp.down_proj")
BATCHES = padded_batches()


@torch.no_grad()
def reference(model, family: str, weight: Weight):
    """Return {(block, kind, held_out): (sum of w x x^T, sum of w x, sum of w)} in float64."""
    layers, *paths = OUTPUTS.get(family, LLAMA)
    seen, found = {}, {}
    for index, block in enumerate(model.get_submodule(layers)):
        block.register_forward_hook(
            lambda m, a, out, i=index: seen.update({i: out[0] if isinstance(out, tuple) else out})
        )
        for kind, path in zip((Kind.ATTENTION, Kind.FFN), paths, strict=True):
            block.get_submodule(path).register_forward_pre_hook(
                lambda m, args, k=(index, kind): seen.update({k: args[0]})
            )
    for batch in BATCHES:
        model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        real = batch.mask.bool()
        for index, kind in [key for key in seen if isinstance(key, tuple)]:
            X = seen[index, kind].reshape(*real.shape, -1)[real].double()
            w = torch.ones(len(X), dtype=torch.float64)
            if weight is Weight.residual:
                w /= seen[index].double().square().mean(-1)[real]
            total, first, mass = found.get((index, kind, batch.held_out), (0.0, 0.0, 0.0))
            sums = total + (X.T * w) @ X, first + w @ X, mass + w.sum()
            found[index, kind, batch.held_out] = sums
    return found


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Compare by the relative Frobenius norm; 1e-5 is some 80 roundings of float32."""
    return float((found.double() - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("weight", [Weight.none, Weight.residual])
@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_those_of_the_plain_forward_pass(family, weight):
    model = FAMILIES[family]()
    found = {
        s: m for block in collect(model, BATCHES, weight, sites(model)) for s, m in block.items()
    }
    assert list(found) == sites(model)
    expected = reference(model, family, weight)
    for site, moment in found.items():
        (fit, fit_first, fit_mass), (held, held_first, held_mass) = (
            expected[site.block, site.kind, use] for use in (False, True)
        )
        assert close(moment.fit.H, fit / fit_mass)
        assert close(moment.held.H, held / held_mass)
        assert close(moment.fit.mean, fit_first / fit_mass)
        assert close(moment.held.mean, held_first / held_mass)
        assert moment.share == pytest.approx(float(held_mass / (fit_mass + held_mass)), rel=1e-5)
        assert close(moment.all.H, (fit + held) / (fit_mass + held_mass))
        assert torch.equal(moment.fit.H, moment.fit.H.T)


def test_padding_counts_for_nothing():
    """Other tokens behind the padding mask leave the moments as they are."""
    model = llama()
    changed = padded_batches()
    for batch in changed:
        batch.ids = torch.where(batch.mask.bool(), batch.ids, 77)
    for one, other in zip(
        collect(model, BATCHES, Weight.residual, sites(model)),
        collect(model, changed, Weight.residual, sites(model)),
        strict=True,
    ):
        for site, moment in one.items():
            assert close(other[site].all.H, moment.all.H.double(), 1e-6)


def test_one_block_at_a_time(monkeypatch):
    """The next block has not run, and only this block's sums are ever in memory."""
    model = llama()
    ran, alive, most = [], weakref.WeakSet(), []
    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda m, a, out, i=index: ran.append(i))
    start = Accumulator.__init__

    def note(self, *args):
        start(self, *args)
        alive.add(self)
        most.append(len(alive))

    monkeypatch.setattr(Accumulator, "__init__", note)
    found = collect(model, BATCHES, Weight.none, sites(model))
    for index in range(len(model.model.layers)):
        block = next(found)
        assert {site.block for site in block} == {index}
        assert max(ran) == index
    assert max(most) == 4  # two sites, to fit and held out
    assert ran == sorted(ran)
    assert len(ran) == len(BATCHES) * len(model.model.layers)  # each block once per batch


def test_hooks_are_removed():
    model = llama()
    list(collect(model, BATCHES, Weight.none, sites(model)))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("columns", [96, 600])  # within and beyond one panel
def test_float32_sums_stay_accurate_over_200_batches(columns):
    generator = torch.Generator().manual_seed(0)
    sums = Accumulator(columns, torch.device("cpu"))
    total, mass = torch.zeros(columns, columns, dtype=torch.float64), 0.0
    first = torch.zeros(columns, dtype=torch.float64)
    for _ in range(200):
        X = torch.randn(64, columns, generator=generator) + 0.5
        X[0] *= 100  # a massive activation
        w = torch.rand(64, generator=generator) * (torch.rand(64, generator=generator) < 0.8)
        sums.add_(X, w)
        total += (X.double().T * w.double()) @ X.double()
        first += w.double() @ X.double()
        mass += float(w.double().sum())
    found = sums.mean()
    assert close(found.H, total / mass)
    assert close(found.mean, first / mass)
    assert torch.equal(found.H, found.H.T)


def test_moments_survive_the_disk(tmp_path):
    model = llama()
    stored, kept = Moments(tmp_path), {}
    for index, block in enumerate(collect(model, BATCHES, Weight.none, sites(model))):
        stored.write(index, block)
        kept |= block
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"block-00{i}.safetensors" for i in range(3)
    ]
    for site, moment in kept.items():
        again = Moments(tmp_path)[site]
        assert isinstance(again, Split)
        for name in ("H", "mean"):
            for part in ("fit", "held"):
                of = (getattr(getattr(x, part), name) for x in (again, moment))
                assert torch.equal(*of)
        assert again.share == moment.share
