import pytest
import torch

from pruning.latency.clock import Timing
from pruning.latency.hardware import Hardware
from pruning.latency.meet import meet
from pruning.latency.profile import MODEL, SHELL, compare, heads, profile, widths
from pruning.models.shrink import shrink_, twin
from pruning.models.sites import linears, sites
from pruning.results.cache import Cache
from pruning.results.stopwatch import Stopwatch
from pruning.search.problem import pose
from tests.families import EVERY, GATED, llama
from tests.models.allocations import mixed
from tests.tiny import levels_plan, linear_table, padded_batches, solve_levels

WIDE = GATED["intermediate_size"]


def hardware(**values) -> Hardware:
    settings = {
        "device": "cpu",
        "batch": 2,
        "sequence": 16,
        "threads": 1,
        "repetitions": 3,
        "alignment": 16,
        "tolerance": 0.5,
        "rounds": 3,
    }
    return Hardware(name="here", **(settings | values))


@pytest.mark.parametrize("family", EVERY)
def test_a_profile_has_every_level(family):
    model = EVERY[family]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = profile(model, hardware(), sites(model)[:2])
    attention, ffn = sites(model)[:2]
    assert list(table.parts["ffn"]) == widths(ffn.units, 16)
    assert list(table.parts["attention"]) == heads(attention.groups, attention.heads_per_group)
    assert (table.parts["ffn"][0], table.parts["attention"][0, 0]) == (0, 0)
    assert 0 < table.rest <= table.dense
    assert all(ms >= 0 for part in table.parts.values() for ms in part.values())
    of_ffn = list(table.parts["ffn"].values())
    assert of_ffn == sorted(of_ffn, reverse=True)
    dense = {site: torch.ones(site.units, dtype=torch.bool) for site in sites(model)}
    assert table.predict(dense) == pytest.approx(table.dense, rel=1e-9)
    assert table.blocks == 3
    assert table.spread >= 1
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("family", EVERY)
def test_a_profile_of_projections(family):
    """Each by itself, dense first; the sum of parts and rest is the dense model."""
    model = EVERY[family]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    of = [site for site in linears(model) if site.block == 0]
    table = profile(model, hardware(), of)
    assert list(table.parts) == [site.module for site in of]
    for site in of:
        assert list(table.parts[site.part]) == widths(site.units, 16)[:-1]
        assert table.levels(site)[0] == site.units
    whole = table.rest + 3 * sum(table.ms(site, site.units) for site in of)
    assert whole == pytest.approx(table.dense, rel=1e-9)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("within", [12.0, 120.0])
def test_the_rest_is_at_least_the_model_without_blocks(monkeypatch, caplog, within):
    """Parts that take longer alone than the whole model must not seem to be all of it."""
    ms = {MODEL: 20 + within, SHELL: 20.0, "attention": 6.0, "ffn": 4.0}
    empty = 1.0  # a block with both halves gone

    def timed(calls, *_) -> dict:
        for call in calls.values():
            call()
        return {name: Timing([ms.get(name[0], empty)]) for name in calls}

    monkeypatch.setattr("pruning.latency.profile.interleaved", timed)
    model = llama()
    table = profile(model, hardware(), sites(model)[:2])
    own = {part: next(iter(levels.values())) for part, levels in table.parts.items()}
    alone = 3 * (6.0 - empty + 4.0 - empty)
    assert table.dense == 20 + within
    assert 3 * sum(own.values()) == pytest.approx(min(alone, within))
    assert own["attention"] / own["ffn"] == pytest.approx(5 / 3)
    assert table.rest == pytest.approx(20 + max(0, within - alone))
    assert table.most(sites(model)) <= (20 + within) / 20
    assert ("scaled to fit" in caplog.text) == (alone > within)


def test_a_profile_is_measured_once_per_shape(tmp_path):
    cache = Cache(tmp_path)
    first = hardware().profile(llama(), sites(llama()), cache)
    assert hardware().profile(llama(), sites(llama()), cache) == first
    assert len([p for p in (tmp_path / "profile").iterdir() if p.is_dir()]) == 1
    hardware(sequence=8).profile(llama(), sites(llama()), cache)
    assert len([p for p in (tmp_path / "profile").iterdir() if p.is_dir()]) == 2


def test_a_model_without_half_of_itself_is_faster():
    """Two of six sub-blocks are gone and some are cut: the clock must notice."""
    dense = llama()
    pruned = shrink_(twin(dense), mixed(dense))
    times = compare(dense, pruned, hardware(repetitions=15, sequence=64, tolerance=0.05))
    assert times[0].p50 > 1.05 * times[1].p50
    assert 15 <= len(times[0].values) == len(times[1].values) <= 30


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"^hardware\.device='cuda:99' cannot be used here"):
        hardware(device="cuda:99").open()
    with pytest.raises(ValueError, match=r"^hardware\.device='abacus' cannot be used here"):
        hardware(device="abacus").open()


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 0), ("alignment", 0), ("threads", 0), ("tolerance", 0.0), ("rounds", 0)],
)
def test_values_out_of_range(field, value):
    with pytest.raises(ValueError, match=rf"^hardware\.{field}={value} must"):
        hardware(**{field: value})


@pytest.mark.gpu
def test_profile_and_meet_on_cuda(tmp_path):
    here = hardware(device="cuda", batch=8, sequence=128, repetitions=20, threads=None)
    device = here.open()
    model = llama().to(device)
    table = here.profile(model, sites(model), Cache(tmp_path))
    assert list(table.parts["ffn"]) == widths(WIDE, 16)
    assert table.dense > 0
    assert table.ms(sites(model)[0], (4, 2)) > 0
    most = table.most(sites(model))
    assert most > 1
    speedup = 1 + (most - 1) / 2
    levels = solve_levels(model, padded_batches(), tmp_path / "moments", linear_table(model, 16))
    problem = pose(levels, table, None, Cache(tmp_path))
    plan = levels_plan(model, levels, lambda b: problem.solve(problem.loss, b))
    met = meet(model, plan, table, here, speedup, Stopwatch())
    assert 1 <= len(met.rounds) <= 3
    assert met.measured > 1
    assert next(met.pruned.parameters()).is_cuda
    assert not all(keep.all() for keep in met.allocation.values())
