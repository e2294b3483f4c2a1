"""Hardware that is not here: counts against torch's own, a roofline by hand, files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from pruning.composition import compose
from pruning.latency.cost_models import Counted, File, Proxy, Roofline
from pruning.latency.importers import at_batch, from_text
from pruning.latency.op_counts import Counter
from pruning.latency.table import LatencyTable
from pruning.models.allocation import first_units
from pruning.models.shape import Heads, Width
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import architecture, linears, sites
from pruning.runtimes.calls import end_to_end
from pruning.runtimes.workload import Phase
from pruning.system.cache import Cache
from tests.helpers.families import EVERY, GATED, ROUTING, llama, random_model
from tests.helpers.shapes import costs, shapes
from tests.helpers.tiny import linear_table
from tests.helpers.works import work_in

WORK = {"phase": Phase.auto, "batch": 2, "sequence_length": 9, "max_new_tokens": 4, "alignment": 1}


def proxy(of: Counted, **work) -> Proxy:
    return Proxy("proxy", "cpu", None, **(WORK | work), counts=of)


@pytest.mark.parametrize("family", EVERY)
def test_parameters_are_those_of_the_pruned_model(family, tmp_path):
    """Of its matrices: biases and norms are left out of the counts."""
    model = EVERY[family]()
    table = proxy(Counted.parameters).profile(model, sites(model), Cache(tmp_path))
    assert (table.basis, table.predicts) == ("counted", "counted")
    allocation = {}
    for index, site in enumerate(sites(model)):
        levels = table.levels(site)
        allocation[site] = first_units(site, levels[(3 * index) % len(levels)])
    pruned = shrink_(copy_sharing_weights(model), allocation)

    def matrices(of) -> int:
        inside = of.get_submodule(architecture(of).blocks).named_parameters()
        return sum(p.numel() for name, p in inside if p.ndim >= 2)

    assert table.dense - table.predict(allocation) == matrices(model) - matrices(pruned) > 0


@torch.no_grad()
@pytest.mark.parametrize("phase", ["auto", "decode"])
@pytest.mark.parametrize("family", EVERY)
def test_operations_are_those_that_torch_counts(family, phase):
    """Of the whole model, in eager attention, which torch sees."""
    model = EVERY[family]()
    model.set_attn_implementation("eager")
    if family in ROUTING:
        model.set_experts_implementation("eager")
    work = work_in(model, phase)
    counter = Counter(model, work, 4)
    call = end_to_end(model, work)
    with FlopCounterMode(display=False) as counted:
        call()
    ours = sum(counter.part(site, site.whole).flop for site in sites(model))
    if family == "opt":  # its embedding has another size: two products, which are not counted
        ours += 2 * counter.rows * 2 * 32 * 64
    if not architecture(model).encoder:
        ours += counter.rest().flop
        assert ours == pytest.approx(counted.get_total_flops(), rel=0.02)
    else:
        assert ours == pytest.approx(counted.get_total_flops(), rel=0.05)  # its head is left out


def test_a_roofline_by_hand(tmp_path):
    """A Llama block of hidden 64, 8 heads of 8 in 4 groups, FFN 96; one row of 10 tokens."""
    model = llama()
    peak, bandwidth, launch = 1e9, 1e8, 1e-5
    here = Roofline(
        *("there", "cpu", None),
        **(WORK | {"batch": 1, "sequence_length": 10}),
        flops={"bfloat16": peak},
        bandwidth=bandwidth,
        launch=launch,
        dtype="bfloat16",
        source="made up",
    )
    table = here.profile(model, sites(model), Cache(tmp_path))
    weights = 3 * 64 * 96
    through = 3 * (64 + 96) * 10
    ffn = max(2 * weights * 10 / peak, 2 * (weights + through) / bandwidth) + 12 * launch
    assert table.parts["ffn"][Width(96)] == pytest.approx(1e3 * ffn)
    weights = 2 * 64 * 64 + 2 * 64 * 32
    through = 2 * (64 + 64) * 10 + 2 * (32 + 64) * 10
    flop = 2 * weights * 10 + 4 * 10 * 10 * 64
    moved = 2 * (weights + through) + 2 * 2 * 10 * 32
    attention = max(flop / peak, moved / bandwidth) + 22 * launch
    assert table.parts["attention"][Heads(4, 2)] == pytest.approx(1e3 * attention)
    assert table.basis == "estimated"
    assert table.setting["dtype"] == "bfloat16"
    dense = {site: torch.ones(site.units, dtype=torch.bool) for site in sites(model)}
    assert table.predict(dense) == pytest.approx(table.dense)


def test_a_roofline_of_projections_adds_up(tmp_path):
    here = proxy(Counted.flop)
    model = llama()
    whole = here.profile(model, sites(model), Cache(tmp_path))
    single = here.profile(model, linears(model), Cache(tmp_path))
    assert single.dense == pytest.approx(whole.dense)
    site = next(s for s in linears(model) if s.module == "mlp.up_proj")
    assert single.ms(site, Width(64)) == 2 * 64 * 96 * 18
    assert single.ms(site, Width(47)) == 2 * 47 * (64 + 96) * 18


@pytest.mark.job
@pytest.mark.parametrize("name", ["h200", "h100", "a100", "v100", "l4", "cpu-2", "cpu-64"])
def test_the_catalogue_profiles_and_names_its_source(name, tmp_path):
    hardware = compose([f"hardware={name}"]).hardware
    assert isinstance(hardware, Roofline)
    assert hardware.source
    for phase in ("prefill", "decode", "generate"):
        here = compose([f"hardware={name}", f"hardware.phase={phase}"]).hardware
        table = here.profile(llama(), sites(llama()), Cache(tmp_path))
        assert 0 < table.rest < table.dense
        assert table.most(sites(llama())) > 1


def test_a_dtype_without_a_peak(tmp_path):
    here = compose(["hardware=v100", "hardware.dtype=bfloat16"]).hardware
    with pytest.raises(ValueError, match=r"^hardware\.flops of v100 has no bfloat16, only float16"):
        here.profile(llama(), sites(llama()), Cache(tmp_path))


def file(path, batch=None) -> File:
    return File("file", "cpu", None, path=str(path), batch=batch)


def table_of(model, batch: int, ms: float) -> LatencyTable:
    table = linear_table(model)
    table.setting = {"phase": "prefill", "batch": batch, "sequence": 8, "tokens": 0}
    table.setting["dtype"] = "float32"
    table.rest, table.dense = table.rest + ms, table.dense + ms
    return table


def test_a_table_from_a_file_is_the_one_that_was_written(tmp_path):
    model = llama()
    table = table_of(model, 1, 0.0)
    table.write(tmp_path / "table.json")
    assert file(tmp_path / "table.json").profile(model, sites(model), Cache(tmp_path)) == table


def test_a_table_serves_more_blocks_of_the_same_shape(tmp_path):
    model = llama()
    table = table_of(model, 1, 0.0)
    table.write(tmp_path / "table.json")
    deeper = random_model(LlamaConfig(**GATED | {"num_hidden_layers": 5}))
    more = file(tmp_path / "table.json").profile(deeper, sites(deeper), Cache(tmp_path))
    assert more.dense == pytest.approx(table.dense + 2 * 3.0)
    assert more.rest == table.rest


def test_a_batch_between_two_is_interpolated_with_its_error(tmp_path):
    model = llama()
    for batch, ms in ((1, 0.0), (4, 3.0), (8, 8.0)):
        table_of(model, batch, ms).write(tmp_path / f"t-{batch}.json")
    found = file(tmp_path / "t-*.json", 6).profile(model, sites(model), Cache(tmp_path))
    assert found.dense == pytest.approx(linear_table(model).dense + 5.5)
    assert found.setting["batch"] == 6
    told, true = 8 * 3 / 7, 3.0  # batch 4 from 1 and 8
    base = linear_table(model).dense
    assert found.setting["interpolation"] == pytest.approx((told - true) / (base + true))
    assert found.setting["between"] == [4, 8]
    exact = file(tmp_path / "t-*.json", 4).profile(model, sites(model), Cache(tmp_path))
    assert exact == table_of(model, 4, 3.0)
    with pytest.raises(ValueError, match=r"tables of batch 1, 4, 8 and hardware\.batch=9 is not"):
        file(tmp_path / "t-*.json", 9).profile(model, sites(model), Cache(tmp_path))
    with pytest.raises(ValueError, match=r"hardware\.batch=None is not between"):
        at_batch([table_of(model, 1, 0), table_of(model, 2, 0)], None, "here")


@pytest.mark.parametrize(
    ("kind", "key", "values"),
    [
        ("setting", "phase", ("prefill", "decode")),
        ("setting", "sequence", (8, 16)),
        ("environment", "gpu", ("A100", "H100")),
    ],
)
def test_tables_that_differ_in_more_than_the_batch(kind, key, values):
    tables = [table_of(llama(), batch, 0.0) for batch in (1, 4)]
    for table, value in zip(tables, values, strict=True):
        getattr(table, kind)[key] = value
    with pytest.raises(ValueError, match=f"^here has tables of {key} {values[0]} and {values[1]}:"):
        at_batch(tables, 2, "here")
    del getattr(tables[0], kind)[key]  # an older table that does not say
    at_batch(tables, 2, "here")


def test_between_two_estimates_is_an_estimate():
    tables = [
        replace(table_of(llama(), batch, 0.0), basis="estimated", unit="s") for batch in (1, 4)
    ]
    found = at_batch(tables, 2, "here")
    assert (found.basis, found.unit) == ("estimated", "s")
    with pytest.raises(ValueError, match=r"^here has tables of basis estimated and measured:"):
        at_batch([tables[0], replace(tables[1], basis="measured")], 2, "here")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "is no latency table"),
        ("{}", "schema"),
        ("[1]", "is no latency table"),
        ("words", "is no latency table"),
    ],
)
def test_a_file_that_is_no_table(content, said, tmp_path):
    for name in ("table.json", "table.txt"):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=r"^hardware\.path=.* is no latency table") as error:
            file(tmp_path / name).profile(llama(), sites(llama()), Cache(tmp_path))
        assert "pruning profile" in str(error.value)
        if name == "table.json":
            assert said in str(error.value)


def test_a_table_of_other_shapes(tmp_path):
    gpt2 = EVERY["gpt2"]()
    table_of(gpt2, 1, 0.0).write(tmp_path / "table.json")
    with pytest.raises(ValueError, match=r"has attention of 8x1, and this model has 4x2"):
        file(tmp_path / "table.json").profile(llama(), sites(llama()), Cache(tmp_path))


TEXT = """base
0.0200
prunable
0.0150
attention
0.0030 0.0000
0.0020 0.5000
0.0000 1.0000
fc
0.0020 0.0000
0.0018 0.1042
0.0019 0.2500
0.0000 1.0000
"""


def test_the_text_of_other_tools():
    """Seconds and the share that is gone; times fall with the size."""
    table = from_text(TEXT, sites(llama()))
    assert table.parts["attention"] == pytest.approx(costs({(4, 2): 3.0, (2, 2): 2.0, (0, 0): 0.0}))
    assert table.parts["ffn"] == pytest.approx(costs({96: 2.0, 86: 1.8, 72: 1.8, 0: 0.0}))
    assert table.rest == pytest.approx(5.0)
    assert table.dense == pytest.approx(5.0 + 3 * 5.0)
    assert table.levels(sites(llama())[1]) == shapes([96, 86, 0])


def test_written_tables_are_json(tmp_path):
    table_of(llama(), 1, 0.0).write(tmp_path / "table.json")
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["schema"] == 1
    assert content["parts"]["attention"]["4x2"] == 1.0


TABLES = sorted((Path(__file__).parents[2] / "conf" / "hardware" / "tables").glob("*.json"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_that_is_shipped_says_where_it_was_measured(path):
    table = LatencyTable.read(path)
    assert table.basis == "measured"
    assert {"cpu", "gpu", "threads", "packages"} <= set(table.environment)
    size = "{phase}-{batch}x{sequence}-{dtype}".format(**table.setting)
    assert path.stem.endswith(size + "-torch_compile" * (table.runtime != "torch"))
    assert all(len(times) > 3 for times in table.raw.values())
    for name, (measured, told) in table.anchors.items():
        if name != "neither":  # which the fit leaves out
            assert told == pytest.approx(measured, rel=0.05), name
