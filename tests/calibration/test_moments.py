"""Moments against float64 sums over what hooks see in the model's own forward pass."""

import shutil
import weakref
from copy import deepcopy

import pytest
import torch
from torch import nn

from pruning.calibration.calibration import Weight
from pruning.calibration.moment import (
    STORED,
    Accumulator,
    Split,
    packed,
    stored_numbers,
    unpacked,
)
from pruning.calibration.moments import Moments, stored_bytes
from pruning.calibration.passes import collect
from pruning.methods.baselines import Flap
from pruning.models.loaded import LoadedModel
from pruning.models.shape import Width
from pruning.models.shrink import shrink_
from pruning.models.sites import Kind, Site, linears, projection, sites, weight
from pruning.system.cache import Cache
from tests.helpers.families import EVERY, llama, opt
from tests.helpers.tiny import padded_batches, text, word_tokenizer

HIDDEN = 64  # of the tiny models; heads, which some families normalise too, are narrower
BATCHES = padded_batches()


@torch.no_grad()
def divisor(norm: nn.Module, h: torch.Tensor) -> torch.Tensor:
    """Measure what a norm divides tokens by: how far apart two entries are, before and behind."""
    plain = deepcopy(norm).double()
    plain.weight.fill_(0.0 if type(norm).__name__.startswith("Gemma") else 1.0)
    if getattr(plain, "bias", None) is not None:
        plain.bias.zero_()
    out = plain(h.double())
    return (h.amax(-1) - h.amin(-1)).double() / (out.amax(-1) - out.amin(-1))


@torch.no_grad()
def read(model, norms: list[nn.Module], outputs: list) -> list[tuple[nn.Module, torch.Tensor]]:
    """Return what each norm reads, in the order in which they run; note what projections give."""
    ran = []
    handles = [
        norm.register_forward_pre_hook(lambda m, args: ran.append((m, args[0]))) for norm in norms
    ]
    handles += [
        projection(model, site).register_forward_hook(lambda m, args, out: outputs.append(out))
        for site in sites(model)
    ]
    model(input_ids=BATCHES[0].ids, attention_mask=BATCHES[0].mask)
    for handle in handles:
        handle.remove()
    return ran


def dividing(model, site: Site, norms: list[nn.Module]) -> list[nn.Module]:
    """Return the norms that divide the error of a site: the first that changes with what it gives.

    And the next one, if that reads what a sub-block gives before it is added to the stream.
    """
    outputs = []
    dense = read(model, norms, [])
    handle = projection(model, site).register_forward_hook(lambda m, args, out: out + 1.0)
    changed = read(model, norms, outputs)
    handle.remove()
    found = [
        (norm, h)
        for (norm, h), (_, other) in zip(changed, dense, strict=True)
        if h.shape[-1] == HIDDEN and not torch.equal(h, other)
    ]
    alone = any(torch.equal(found[0][1], output) for output in outputs)
    return [norm for norm, _ in found[: 1 + alone]]


@torch.no_grad()
def reference(model, of: list[Site], weighting: Weight):
    """Return {(site, held_out): (sum of w x x^T, sum of w x, sum of w)} in float64."""
    norms = [
        module
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__ and not name.endswith(("q_norm", "k_norm"))
    ]
    dividers = {site: dividing(model, site, norms) for site in of}
    ran, inputs, found = {}, {}, {}
    for site in of:
        projection(model, site).register_forward_pre_hook(
            lambda m, args, site=site: inputs.update({site: inputs.get(site, args[0])})
        )
    for norm in norms:
        norm.register_forward_pre_hook(lambda m, args: ran.update({m: args[0]}))
    for batch in BATCHES:
        inputs.clear()
        model(input_ids=batch.ids, attention_mask=batch.mask)
        real = batch.mask.bool()
        for site, x in inputs.items():
            X = x.reshape(*real.shape, -1)[real].double()
            w = torch.ones(len(X), dtype=torch.float64)
            for norm in dividers[site] if weighting is Weight.residual else ():
                w /= divisor(norm, ran[norm].reshape(*real.shape, -1)[real]).square()
            total, first, mass = found.get((site, batch.held_out), (0.0, 0.0, 0.0))
            sums = total + (X.T * w) @ X, first + w @ X, mass + w.sum()
            found[site, batch.held_out] = sums
    return found


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Compare by the relative Frobenius norm; 1e-5 is some 80 roundings of float32."""
    return float((found.double() - expected).norm() / expected.norm()) < tolerance


def check(model, of: list[Site], weighting: Weight) -> None:
    """Compare the moments of sites with those of the plain forward pass."""
    routed = [site for site in of if site.kind is Kind.EXPERTS]  # in tests/solver/test_experts.py
    of = [site for site in of if site not in routed]
    blocks_of = collect(model, BATCHES, weighting, of + routed)
    found = {s: m for block in blocks_of for s, m in block.items() if s in of}
    assert set(found) == set(of)
    expected = reference(model, of, weighting)
    for site, moment in found.items():
        (fit, fit_first, fit_mass), (held, held_first, held_mass) = (
            expected[site, use] for use in (False, True)
        )
        assert close(moment.fit.H, fit / fit_mass)
        assert close(moment.held.H, held / held_mass)
        assert close(moment.fit.mean, fit_first / fit_mass)
        assert close(moment.held.mean, held_first / held_mass)
        assert moment.share == pytest.approx(float(held_mass / (fit_mass + held_mass)), rel=1e-5)
        H, mean = ((a + b) / (fit_mass + held_mass)
                   for a, b in ((fit, held), (fit_first, held_first)))  # fmt: skip
        assert close(moment.all.H, H)
        assert close(moment.all.covariance, H - mean[:, None] * mean)
        assert torch.equal(moment.fit.H, moment.fit.H.T)


@pytest.mark.parametrize("weighting", [Weight.none, Weight.residual])
@pytest.mark.parametrize("family", EVERY)
def test_moments_are_those_of_the_plain_forward_pass(family, weighting):
    """Every token weighs as the norm asks that divides the site's error, before or behind."""
    model = EVERY[family]()
    check(model, sites(model) + linears(model), weighting)


GONE = ((1, Kind.FFN), (1, Kind.EXPERTS), (2, Kind.ATTENTION))


@pytest.mark.parametrize("family", EVERY)
def test_what_is_left_of_a_block_is_weighted_alike(family):
    """Behind an attention without its FFN it is the norm of the next block that divides."""
    model = EVERY[family]()
    before = sites(model)
    gone = [s for s in before if (s.block, s.kind) in GONE]
    shrink_(model, {site: torch.zeros(site.units, dtype=torch.bool) for site in gone})
    left = sites(model)
    assert len(left) == len(before) - 2
    check(model, left, Weight.residual)


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


def test_passes_in_bfloat16_give_the_moments_of_float32_up_to_rounding():
    model = llama()
    exact, fast = (
        {
            site: m
            for block in collect(model, BATCHES, Weight.residual, sites(model), low)
            for site, m in block.items()
        }
        for low in (False, True)
    )
    for site, split in exact.items():
        H, other = split.all.H, fast[site].all.H
        assert other.dtype == H.dtype == torch.float32
        assert 1e-6 < float((other - H).norm() / H.norm()) < 0.02


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


@pytest.mark.parametrize("ratio", [1, 100, 10_000])
def test_a_large_mean_drowns_neither_sums_nor_variance(ratio):
    """A million tokens; column 0 is constant, column 1 dead."""
    generator = torch.Generator().manual_seed(0)
    columns = 16
    mean = 0.5 + torch.rand(columns, generator=generator)
    sums, mass = Accumulator(columns, torch.device("cpu")), 0.0
    total = torch.zeros(columns, columns, dtype=torch.float64)
    first = torch.zeros(columns, dtype=torch.float64)
    for _ in range(512):
        X = mean + torch.randn(2048, columns, generator=generator) / ratio
        X[:, 0], X[:, 1] = 1 / 3, 0
        w = torch.rand(2048, generator=generator) + 0.5
        sums.add_(X, w)
        total += (X.double().T * w.double()) @ X.double()
        first += w.double() @ X.double()
        mass += float(w.double().sum())
    found, expected = sums.mean(), first / mass
    covariance = total / mass - expected[:, None] * expected
    # a millionth of the variance, in float32 sums; and as well as float32 stores
    assert close(found.H, total / mass, 2e-6 / ratio**2 + 1e-7)
    assert close(found.mean, expected, 1e-7)
    assert found.H[1].abs().max() == 0
    variance = found.covariance.diagonal()
    assert 0 <= variance[0] < 1e-14  # the square of what float32 resolves beside 1/3
    assert variance[1] == 0
    assert close(variance[2:], covariance.diagonal()[2:])


@torch.no_grad()
def test_flap_orders_by_the_variance_of_nearly_constant_inputs(tmp_path):
    model = opt()
    block = model.model.decoder.layers[0]
    block.fc1.bias.add_(1000)  # behind the ReLU a mean of 1000, and a variance near 1
    seen = []
    block.fc2.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    site = sites(model)[1]
    moments = Moments(tmp_path)
    moments.write(0, next(collect(model, BATCHES, Weight.none, [site])))
    real = torch.cat([batch.mask.flatten().bool() for batch in BATCHES])
    X = torch.cat(seen).double()[real]
    variance = X.var(0, unbiased=False)
    assert variance.max() < 1e-5 * X.mean() ** 2
    assert moments[site].all.covariance.diagonal().min() > 0
    score = weight(block.fc2).double().square().sum(0) * variance
    widths = [site.units, 60, 30, 1, 0]
    shapes = [Width(width) for width in widths]
    of = Flap("flap", bias=True).site_levels(site, weight(block.fc2), moments[site], shapes)
    for keep, width in zip(of.keeps, widths, strict=True):
        kept = score.argsort(descending=True)[:width]
        assert keep.nonzero().flatten().tolist() == sorted(kept.tolist())


@pytest.mark.parametrize("columns", [1, 5, STORED, 2 * STORED + 44])
def test_a_symmetric_moment_is_stored_in_about_half(columns):
    draw = torch.randn(columns, columns, generator=torch.Generator().manual_seed(0))
    H = draw + draw.T
    stored = packed(H)
    assert torch.equal(unpacked(stored, columns), H)
    assert stored.numel() == stored_numbers(columns)
    assert stored.numel() <= columns * (columns + STORED) / 2 or columns < STORED


def test_a_disk_that_is_too_small_for_moments_is_said_before_the_work(tmp_path, monkeypatch):
    model, cache = llama(), Cache(tmp_path)
    dense, place = LoadedModel(model, word_tokenizer()), sites(model)
    needed = stored_bytes(place, 64)
    Moments.collect(dense, BATCHES, text(), place, cache)
    (entry,) = (tmp_path / "moments").glob("*/")
    written = sum(file.stat().st_size for file in entry.glob("*.safetensors"))
    assert needed <= written <= needed + 3 * 2000  # headers of three files
    full = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - needed + 1, needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    Moments.collect(dense, BATCHES, text(), place, cache)  # they are there
    monkeypatch.setattr("pruning.calibration.moments.collect", lambda *_: pytest.fail("worked"))
    with pytest.raises(ValueError, match=r"^cache=.*: moments will take 0\.\d\d GB, and 0"):
        Moments.collect(dense, BATCHES[1:], text(), place, cache)


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
        for name in ("H", "mean", "variance"):
            for part in ("fit", "held"):
                of = (getattr(getattr(x, part), name) for x in (again, moment))
                assert torch.equal(*of)
        assert again.share == moment.share
        fit = Moments(tmp_path).fit(site, torch.device("cpu"))
        assert torch.equal(fit.H, moment.fit.H)
