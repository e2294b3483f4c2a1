import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, OPTConfig

from pruning.job.closed_loop import SpeedTarget, prune_to_speedup
from pruning.latency.grid import experts, heads, widths
from pruning.latency.local import Local
from pruning.latency.measurement import Measurement
from pruning.latency.profile import NOTHING, doubts, in_a_row, known, profile, repeated, within
from pruning.latency.reference_models import reference_models
from pruning.latency.shapes import spent
from pruning.latency.table import LatencyTable
from pruning.latency.timer import SECONDS, Timing
from pruning.models.shape import Experts, Heads, Width
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import Kind, Site, architecture, blocks, linears, sites
from pruning.models.source import Attention, Dtype, Model
from pruning.runtimes.torch_compile import TorchCompile
from pruning.runtimes.torch_eager import EAGER
from pruning.runtimes.workload import Phase
from pruning.search.problem import build_problem
from pruning.system.cache import Cache
from pruning.system.stopwatch import Stopwatch
from tests.helpers.allocations import mixed
from tests.helpers.families import (
    COMMON,
    ENCODERS,
    EVERY,
    GATED,
    ROUTING,
    llama,
    random_model,
    reader,
)
from tests.helpers.shapes import costs, shapes
from tests.helpers.tiny import (
    levels_plan,
    linear_table,
    padded_batches,
    solve_levels,
    word_tokenizer,
)

WIDE = GATED["intermediate_size"]
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 4}
WIDER = {"hidden_size": 512, "intermediate_size": 1024}


def hardware(**values) -> Local:
    settings = {
        "device": "cpu",
        "phase": Phase.auto,
        "batch": 2,
        "sequence_length": 16,
        "max_new_tokens": 5,
        "threads": 1,
        "repetitions": 3,
        "alignment": 16,
        "tolerance": 0.5,
        "rounds": 3,
        "noise": None,
    }
    return Local(name="here", **(settings | values))


COMPILE = TorchCompile("torch_compile")


def how(model, runtime=EAGER, **values) -> Measurement:
    return hardware(**values).measurement(model, runtime)


@pytest.mark.job
@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("phase", ["auto", "decode"])
def test_a_profile_has_every_level(family, phase):
    model = EVERY[family]()
    if phase == "decode" and architecture(model).encoder:
        pytest.skip("an encoder does not decode")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = profile(model, how(model, phase=Phase(phase)), sites(model))
    attention, ffn = sites(model)[:2]
    if family in ROUTING:
        each = experts(ffn.groups, ffn.heads_per_group, ffn.least, 16)
        assert list(table.parts["experts"]) == each
    else:
        assert list(table.parts["ffn"]) == widths(ffn.units, 16)
    timed = [level for level in heads(attention.groups, attention.heads_per_group)
             if level.units >= attention.least or not level.units]  # fmt: skip
    assert list(table.parts["attention"]) == timed
    assert (table.ms(ffn, ffn.gone), table.ms(attention, attention.gone)) == (0, 0)
    assert table.rest <= table.dense
    assert list(table.anchors) == ["dense", "no attention", "no FFN", "neither"]
    assert table.setting["phase"] == ("encode" if architecture(model).encoder else "prefill") or (
        table.setting["phase"] == phase
    )
    assert len(table.raw["dense"]) == 3
    for name, values in table.raw.items():
        assert table.quantiles[name] == list(np.percentile(values, [25, 50, 75, 90]))
    assert all(ms >= 0 for part in table.parts.values() for ms in part.values())
    if family not in ROUTING:
        of_ffn = list(table.parts["ffn"].values())
        assert of_ffn == sorted(of_ffn, reverse=True)
    dense = {site: torch.ones(site.units, dtype=torch.bool) for site in sites(model)}
    assert table.predict(dense) == pytest.approx(table.dense, rel=1e-9)
    assert table.blocks == len(blocks(model))
    assert table.spread >= 1
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_one_token_reads_as_many_experts_however_many_there_are():
    """So fewer of them are no faster where one token is decoded, and are not offered there."""
    model = EVERY["qwen3_moe"]()
    site = next(site for site in sites(model) if site.kind is Kind.EXPERTS)
    for batch in (1, 8):
        setting = how(model, phase=Phase.decode, batch=batch)
        table = profile(model, setting, sites(model))
        ms = table.parts["experts"]
        assert ("experts 4*16" in table.raw) == (batch > 1)
        assert batch > 1 or ms[Experts(4, 16)] == ms[Experts(6, 16)]
        fewer = [left for left in table.levels(site) if 0 < left.experts < 6]
        assert batch > 1 or not fewer


@pytest.mark.parametrize("family", EVERY)
def test_a_profile_of_projections(family):
    """Each by itself, dense first; the sum of parts and rest is the dense model."""
    model = EVERY[family]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    of = [site for site in linears(model) if site.block == 0]
    table = profile(model, how(model), linears(model))
    assert list(table.parts) == [site.module for site in of]
    for site in of:
        assert list(table.parts[site.part]) == widths(site.units, 16)[:-1]
        assert table.levels(site)[0] == site.whole
    whole = table.rest + len(blocks(model)) * sum(table.ms(site, site.whole) for site in of)
    assert whole == pytest.approx(table.dense, rel=1e-9)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


TRUE = {"attention": 6.0, "ffn": 4.0, NOTHING: 0.0}  # ms within a model
ALONE = {"attention": 1.3, "ffn": 0.8}  # how much longer alone
EMPTY, REST = 1.0, 20.0


def true_ms(part: str, level) -> float:
    """Let time be proportional to what is kept."""
    if part == "attention":
        return TRUE[part] * level.units / 8
    return TRUE[part] * level.units / WIDE


def clock_of(shapes_of_anchors):
    """Return a fake `interleaved`: parts alone are off by a factor, whole models are true."""

    def timed(calls, *_, **__) -> dict:
        found = {}
        for part, level in calls:
            if part in shapes_of_anchors:
                ms = REST + sum(true_ms(s.part, of) for s, of in shapes_of_anchors[part].items())
            elif part == NOTHING:
                ms = EMPTY
            else:
                ms = EMPTY + ALONE[part] * true_ms(part, level)
            found[part, level] = Timing([ms] * 3)
        return found

    return timed


@pytest.mark.parametrize("times", [1, 4])
def test_whole_models_set_the_scale_of_parts(monkeypatch, times):
    """On a fake clock, where parts alone are slower or faster by known factors.

    On a GPU a part is called several times to be timed once.
    """
    model = llama()
    known = {anchor.name: anchor.shapes for anchor in reference_models(model, sites(model), 16)}
    timed = clock_of(known)

    def in_rows(calls, *_, **__) -> dict:
        return {
            name: timing if name[0] in known else Timing([times * ms for ms in timing.values])
            for name, timing in timed(calls).items()
        }

    monkeypatch.setattr("pruning.latency.profile.interleaved", in_rows)
    monkeypatch.setattr("pruning.latency.profile.in_a_row", lambda device: times)
    table = profile(model, how(model), sites(model))
    assert table.rest == pytest.approx(REST)
    for kind in ("attention", "ffn"):
        assert table.scales[kind] == pytest.approx(1 / ALONE[kind])
        for level, ms in table.parts[kind].items():
            assert ms == pytest.approx(true_ms(kind, level) if level.units else 0)
    assert table.residuals() == pytest.approx(dict.fromkeys(known, 0.0))


@pytest.mark.job
def test_what_is_compiled_are_blocks_and_a_failure_is_one_line(monkeypatch):
    model = llama()
    linear = [site for site in linears(model) if site.block == 0]
    with pytest.raises(ValueError, match=r"^runtime=torch_compile is for methods that cut blocks"):
        profile(model, how(model, COMPILE), linear)

    def broken(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.raises(ValueError, match=r"^runtime=torch_compile: torch cannot .*no compiler"):
        how(model, COMPILE).compare(model, model)


def test_the_runtime_is_part_of_what_was_timed(tmp_path):
    model, here, cache = llama(), hardware(), Cache(tmp_path)
    eager, compiled = (
        here._identity(model, sites(model), how(model, runtime)) for runtime in (EAGER, COMPILE)
    )
    assert compiled["setting"] == [*eager["setting"], "torch_compile", torch.__version__]
    assert eager["setting"] == ["cpu", "prefill, 2 x 16 tokens", 1]
    assert here.profile(model, sites(model), cache).runtime == "torch"


def test_a_slow_width_is_never_offered(monkeypatch):
    model = llama()
    known = {anchor.name: anchor.shapes for anchor in reference_models(model, sites(model), 16)}
    timed = clock_of(known)

    def with_slow_width(calls, *_, **__) -> dict:
        found = timed(calls)
        found["ffn", Width(48)] = found["ffn", Width(64)]
        found["attention", Heads(3, 2)] = Timing([9.0] * 3)  # slower than all four groups
        return found

    monkeypatch.setattr("pruning.latency.profile.interleaved", with_slow_width)
    table = profile(model, how(model), sites(model))
    attention, ffn = sites(model)[2:4]
    assert table.levels(ffn) == shapes([96, 80, 64, 32, 16, 0])
    # 9 ms, of which the block takes 1, and all four groups of two heads 1.3 x 6
    assert table.lowered == pytest.approx({"attention": (8.0 - 7.8) / 7.8, "ffn": 0.0})
    assert set(heads(4, 2)) - set(table.levels(attention)) == {Heads(3, 2)}


def test_a_noisy_profile_is_refused_with_the_figure(monkeypatch):
    model = llama()
    known = {anchor.name: anchor.shapes for anchor in reference_models(model, sites(model), 16)}
    timed = clock_of(known)

    def noisy(calls, *_, **__) -> dict:
        found = timed(calls)
        found["ffn", Width(48)] = Timing(
            [2.0, 3.0, 4.0]
        )  # 0.93 x 1 / sqrt(3) = 0.54 of 0.8 x 4 + 1
        return found

    monkeypatch.setattr("pruning.latency.profile.interleaved", noisy)
    with pytest.raises(
        ValueError, match=r"^hardware\.noise=0\.1: the time of ffn 48 is 3 ms, known to 13% of the"
    ):
        profile(model, how(model, noise=0.1), sites(model))
    profile(model, how(model, noise=0.3), sites(model))


BURN = "while True: pass"


@contextmanager
def busy_machine():
    """Burn every core."""
    others = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(os.cpu_count() or 2)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def attempt(model, here: Local) -> LatencyTable | str:
    """Return a table, or why there is none."""
    try:
        return profile(model, here.measurement(model), sites(model))
    except ValueError as error:
        return str(error)


@pytest.mark.job
def test_a_busy_machine_gives_the_quiet_table_or_a_refusal():
    model = random_model(LlamaConfig(**(GATED | WIDER)))
    here = hardware(
        sequence_length=128, repetitions=8, noise=0.2, alignment=256, threads=os.cpu_count()
    )
    threads = torch.get_num_threads()
    here.open()
    try:
        quiet = attempt(model, here)
        with busy_machine():
            busy = attempt(model, here)
    finally:
        torch.set_num_threads(threads)
    if isinstance(busy, str):
        assert "took CPUs away" in busy or "known to" in busy
        assert "hardware.noise" in busy
        return
    if isinstance(quiet, str):
        pytest.skip(f"this machine is not quiet: {quiet}")
    assert busy.dense == pytest.approx(quiet.dense, rel=0.1)
    for part, levels in quiet.parts.items():
        dense = next(iter(levels.values()))
        for level, ms in levels.items():
            assert busy.parts[part][level] == pytest.approx(ms, abs=0.1 * dense)


@pytest.mark.job
def test_generate_is_the_sum_of_its_steps():
    model = llama()
    table = profile(model, how(model, phase=Phase.generate, max_new_tokens=6), sites(model))
    assert table.setting["phase"] == "generate"
    dense = {site: torch.ones(site.units, dtype=torch.bool) for site in sites(model)}
    assert table.predict(dense) == pytest.approx(table.dense, rel=1e-9)
    assert {name.split(":")[0] for name in table.raw} == {"prefill 2 x 16", "decode 2 x 19"}
    times = how(model, phase=Phase.generate).compare(
        model, shrink_(copy_sharing_weights(model), mixed(model))
    )
    assert all(of.p50 > 0 for of in times)


def test_a_profile_is_measured_once_per_shape(tmp_path):
    cache = Cache(tmp_path)
    first = hardware().profile(llama(), sites(llama()), cache)
    assert hardware().profile(llama(), sites(llama()), cache) == first
    assert len([p for p in (tmp_path / "profile").iterdir() if p.is_dir()]) == 1
    hardware(sequence_length=8).profile(llama(), sites(llama()), cache)
    assert len([p for p in (tmp_path / "profile").iterdir() if p.is_dir()]) == 2


def opt_of(width: int):
    values = {"ffn_dim": 96, "word_embed_proj_dim": width, "max_position_embeddings": 128}
    return random_model(OPTConfig(**COMMON, **values))


PAIRS = {
    "a sliding window": [
        lambda window=window: random_model(MistralConfig(**GATED, sliding_window=window))
        for window in (6, None)
    ],
    "biases": [lambda bias=bias: llama(attention_bias=bias) for bias in (False, True)],
    "classifier or reader": [ENCODERS["bert"], lambda: reader("bert")],
    "projections around the blocks": [lambda: opt_of(32), lambda: opt_of(64)],
}


@pytest.mark.job
@pytest.mark.parametrize("what", PAIRS)
def test_models_that_take_different_times_have_a_profile_each(what, tmp_path):
    one, other = (make() for make in PAIRS[what])
    for model in (one, other, one):
        hardware(repetitions=1).profile(model, sites(model), Cache(tmp_path))
    assert len(list(tmp_path.glob("profile/*/"))) == 2


def test_a_profile_does_not_depend_on_what_takes_no_time(tmp_path):
    cache, first = Cache(tmp_path), hardware().profile(llama(), sites(llama()), Cache(tmp_path))
    renamed = llama(attention_dropout=0.5)
    renamed.config._name_or_path, renamed.config.eos_token_id = str(tmp_path), 5
    assert hardware().profile(renamed, sites(renamed), cache) == first


@pytest.mark.job
def test_a_model_without_half_of_itself_is_faster():
    """Two of six sub-blocks are gone and some are cut: the clock must notice."""
    dense = llama()
    pruned = shrink_(copy_sharing_weights(dense), mixed(dense))
    times = how(dense, repetitions=15, sequence_length=64, tolerance=0.05).compare(dense, pruned)
    assert times[0].p50 > 1.05 * times[1].p50
    assert 15 <= len(times[0].values) == len(times[1].values)
    seconds = sum(times[0].values + times[1].values) / 1000
    assert len(times[0].values) <= 30 or seconds < SECONDS + 1  # as long as it may take


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"^hardware\.device='cuda:99' cannot be used here"):
        hardware(device="cuda:99").open()
    with pytest.raises(ValueError, match=r"^hardware\.device='abacus' cannot be used here"):
        hardware(device="abacus").open()


@pytest.mark.gpu
def test_profile_and_meet_on_cuda(tmp_path):
    here = hardware(device="cuda", batch=8, sequence_length=128, repetitions=20, threads=None)
    device = here.open()
    model = llama().to(device)
    table = here.profile(model, sites(model), Cache(tmp_path))
    assert list(table.parts["ffn"]) == widths(WIDE, 16)
    assert table.dense > 0
    assert table.ms(sites(model)[0], Heads(4, 2)) > 0
    most = table.most(sites(model))
    assert most > 1
    speedup = 1 + (most - 1) / 2
    levels = solve_levels(model, padded_batches(), tmp_path / "moments", linear_table(model, 16))
    problem = build_problem(levels, table, None, Cache(tmp_path))
    plan = levels_plan(model, levels, lambda b: problem.solve(problem.loss, b))
    met = prune_to_speedup(model, plan, table, SpeedTarget(speedup, here), Stopwatch())
    assert 1 <= len(met.rounds) <= 3
    assert met.measured > 1
    assert next(met.pruned.parameters()).is_cuda
    assert not all(keep.all() for keep in met.allocation.values())


@pytest.mark.gpu
def test_blocks_alone_take_on_cuda_what_they_take_in_a_model():
    model = random_model(LlamaConfig(**COMMON | LARGE)).to("cuda", torch.bfloat16)
    there = how(model, device="cuda", batch=8, sequence_length=1024, repetitions=20, threads=None)
    table = profile(model, there, sites(model))
    assert all(0.8 < scale < 1.25 for scale in table.scales.values()), table.scales


def test_calls_in_a_row_are_that_many_calls():
    counted = []
    assert in_a_row(torch.device("cpu")) == 1
    repeated(lambda: counted.append(1), 3)()
    assert len(counted) == 3


def test_parts_that_noise_made_longer_than_the_model_leave_room_for_the_rest():
    parts = {
        "attention": costs({(2, 1): 3.0, (1, 1): 2.0, (0, 0): 0.0}),
        "ffn": costs({64: 4.0, 32: 2.0, 0: 0.0}),
    }
    of = [
        site
        for block in range(2)
        for site in (Site(block, Kind.ATTENTION, 2, 8, 2), Site(block, Kind.FFN, 64))
    ]
    assert within(parts, of, 20.0, 5.0) == parts
    shrunk = within(parts, of, 10.0, 4.0)  # 14 ms of 10
    assert spent(shrunk, of) == pytest.approx(6.0)
    assert shrunk["ffn"][Width(32)] / shrunk["attention"][Heads(1, 1)] == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [Dtype.bfloat16, Dtype.float16])
def test_a_model_too_large_to_have_twice_is_profiled_with_the_weights_of_one_block(
    dtype, tmp_path, monkeypatch
):
    """What 7B shapes are profiled with: only config.json is read, and all blocks share."""
    whole = llama()
    whole.config.save_pretrained(tmp_path)
    monkeypatch.setattr("pruning.models.source.LARGE", 0)
    given = Model("mine", str(tmp_path), dtype=dtype)
    model = given.skeleton(Cache(tmp_path / "cache"), torch.device("cpu"))
    assert len(blocks(model)) == len(blocks(whole)) == 3
    block = sum(p.numel() for p in blocks(whole)[0].parameters())
    assert sum(p.numel() for p in whole.parameters()) - 2 * block == sum(
        p.numel() for p in model.parameters()
    )
    assert [b.self_attn.layer_idx for b in blocks(model)] == [0, 1, 2]
    table = profile(model, how(model), sites(model))
    assert (table.setting["dtype"], table.blocks) == (str(dtype), 3)
    assert list(table.parts["attention"]) == heads(4, 2)


def test_the_attention_implementation_is_part_of_a_profiles_identity(tmp_path):
    llama().save_pretrained(tmp_path / "dense")
    word_tokenizer().save_pretrained(tmp_path / "dense")
    cache, cpu, here = Cache(tmp_path / "cache"), torch.device("cpu"), hardware()
    tables, outputs = {}, []
    for attention in (Attention.eager, Attention.sdpa):
        given = Model("mine", str(tmp_path / "dense"), dtype=Dtype.float32, attention=attention)
        model, _ = given.load(cache, cpu)
        assert model.config._attn_implementation == attention
        assert given.skeleton(cache, cpu).config._attn_implementation == attention
        outputs.append(model(input_ids=torch.arange(3, 20)[None]).logits)
        tables[attention] = here.profile(model, sites(model), cache)
    torch.testing.assert_close(*outputs)
    assert {a: t.setting["attention"] for a, t in tables.items()} == {a: a for a in tables}
    assert len([p for p in (tmp_path / "cache" / "profile").iterdir() if p.is_dir()]) == 2
    flash = Model("mine", str(tmp_path / "dense"), dtype=Dtype.float32, attention=Attention.flash)
    with pytest.raises(
        ValueError, match=r"^model\.attention=flash_attention_2 cannot be used here"
    ):
        flash.load(cache, cpu)


def test_levels_are_known_to_a_share_of_the_whole_part():
    """By hand: 0.93 (q75 - q25) / sqrt(n), as a share of the dense level's median."""
    heads, width = Heads(2, 2), Width(8)
    even = [9.0, 10.0, 10.0, 11.0]  # quartiles 9.75 and 10.25
    timings = {
        ("attention", heads): Timing(even),
        ("attention", Heads(1, 1)): Timing([value / 2 for value in even]),
        ("ffn", width): Timing([4.0] * 4),
        ("", Width(0)): Timing([1.0, 2.0, 2.0, 3.0]),
    }
    of_dense, of_half, of_ffn, of_nothing = doubts(timings).values()
    assert of_dense == pytest.approx(0.93 * 0.5 / 2 / 10)
    assert of_half == pytest.approx(of_dense / 2)
    assert of_ffn == 0
    assert of_nothing == pytest.approx(0.93 * 0.5 / 2 / 4)
    assert not known(timings)
    assert known({name: Timing(timing.values * 1000) for name, timing in timings.items()})
