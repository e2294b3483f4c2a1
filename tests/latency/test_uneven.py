"""Models whose blocks differ: each part is timed once per level, in a block that has it."""

import pytest
import torch

from pruning.latency.cost_models import Counted, Proxy
from pruning.latency.profile import NONE, NOTHING, profile
from pruning.latency.timer import Timing
from pruning.methods.dense import Dense
from pruning.methods.svd import SVD
from pruning.methods.ziplm import Score
from pruning.models.allocation import first_units
from pruning.models.modeling_pruned import block_shape, factorise_, ranks
from pruning.models.shape import Heads
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import Kind, architecture, blocks, sites
from pruning.runtimes.calls import end_to_end
from pruning.runtimes.workload import Phase, Workload
from pruning.system.cache import Cache
from tests.helpers.allocations import mixed
from tests.helpers.families import ENCODERS, EVERY, llama
from tests.helpers.tiny import ziplm
from tests.latency.test_cost_models import file
from tests.latency.test_profile import how

PHASES = [(f, p) for f in EVERY for p in ("prefill", "decode")]


def uneven(family: str = "llama"):
    """Make a model with fewer heads in block 0, no attention in 1, no FFN in 2."""
    model = EVERY[family]()
    return shrink_(model, mixed(model))


def true_ms(part: str, level) -> float:
    """Say what a part costs on the fake clock, alone and within a model alike."""
    if part == Kind.ATTENTION.value:
        return 0.4 * level.groups + 0.2 * level.units
    return 0.05 * level.units


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_table_of_unequal_blocks_adds_up(monkeypatch, family):
    """On a fake clock: every site has its own times, whatever block they were taken in."""
    model = uneven(family)
    of = sites(model)
    rest, empty = 3.0, 0.5

    def whole(name: str) -> float:
        parts = {"no attention": ["attention"], "no FFN": ["ffn"], "neither": ["attention", "ffn"]}
        gone = parts.get(name, [])
        left = [s for s in of if s.part not in gone or not s.removable]
        return rest + sum(true_ms(s.part, s.whole) for s in left)

    def interleaved(calls, *_, **__):
        found = {}
        for part, level in calls:
            if part == NOTHING:
                ms = empty
            elif level == NONE:
                ms = whole(part)
            else:
                ms = empty + true_ms(part, level)
            found[part, level] = Timing([ms] * 3)
        return found

    monkeypatch.setattr("pruning.latency.profile.interleaved", interleaved)
    table = profile(model, how(model), of)
    assert table.rest == pytest.approx(rest)
    assert table.dense == pytest.approx(whole("dense"))
    for site in of:
        assert table.levels(site)[0] == site.whole
        for level in table.levels(site):
            expected = true_ms(site.part, level) if level.units else 0.0
            assert table.ms(site, level) == pytest.approx(expected)
    widths = {site.whole for site in of if site.kind is Kind.FFN}
    assert len(widths) > 1
    assert widths <= set(table.parts["ffn"])


@pytest.mark.job
@pytest.mark.parametrize(("family", "phase"), PHASES)
def test_unequal_blocks_are_profiled_on_the_clock(family, phase):
    model = uneven(family)
    work = {"phase": Phase.auto if family in ENCODERS else Phase(phase)}
    table = profile(model, how(model, **work), sites(model))
    total = table.total({site: site.whole for site in sites(model)})
    assert total == pytest.approx(table.dense)


def test_parameters_of_unequal_blocks_are_counted_whole(tmp_path):
    work = {
        "phase": Phase.auto,
        "batch": 2,
        "sequence_length": 9,
        "max_new_tokens": 4,
        "alignment": 1,
    }
    proxy = Proxy("proxy", "cpu", None, **work, counts=Counted.parameters)
    model = uneven()
    table = proxy.profile(model, sites(model), Cache(tmp_path))
    norms = sum(
        p.numel() for n, p in model.named_parameters() if "norm" in n and n != "model.norm.weight"
    )
    assert table.dense == sum(p.numel() for p in model.parameters()) - norms
    table.write(tmp_path / "table.json")
    again = file(tmp_path / "table.json").profile(model, sites(model), Cache(tmp_path))
    assert again.dense == table.dense
    of_dense = proxy.profile(llama(), sites(llama()), Cache(tmp_path))
    of_dense.write(tmp_path / "dense.json")
    with pytest.raises(ValueError, match="profile this model on that machine"):
        file(tmp_path / "dense.json").profile(model, sites(model), Cache(tmp_path))


@torch.no_grad()
def test_products_are_no_sites_and_the_rest_is_cut():
    model = llama()
    whole = sites(model)
    block = blocks(model)[1]
    for parameter in factorise_(block, "mlp.up_proj", 5).parameters():
        parameter.normal_(std=0.1)
    left = sites(model)
    assert [s for s in whole if s not in left] == [s for s in whole if s.name == "block.1.ffn"]
    attention = next(site for site in left if site.name == "block.1.attention")
    cut = shrink_(copy_sharing_weights(model), {attention: first_units(attention, Heads(1, 2))})
    assert block_shape(blocks(cut)[1], architecture(cut)) == (1, 2, 96, 0)  # products stay
    assert [*ranks(blocks(cut)[1])] == ["mlp.up_proj"]
    table = profile(model, how(model), left)
    assert table.total({site: site.whole for site in left}) == pytest.approx(table.dense)
    with pytest.raises(ValueError, match="products of two already"):
        SVD("svd", modules="*", whiten=True).sites(model)
    for block in blocks(model):
        for path in ("self_attn.q_proj", "mlp.up_proj"):
            if hasattr(block.get_submodule(path), "weight"):
                for parameter in factorise_(block, path, 5).parameters():
                    parameter.normal_(std=0.1)
    with pytest.raises(ValueError, match=r"^method=ziplm finds nothing to cut"):
        ziplm(Score.obs, [0.1]).sites(model)
    assert Dense("dense", 1.0).sites(model) == []
    table = profile(model, how(model), [])
    assert table.rest == table.dense
    end_to_end(model, Workload(Phase.prefill, 1, 8))()


def test_ranks_are_not_sought_in_unequal_blocks():
    with pytest.raises(ValueError, match="ranks are sought in blocks that are alike"):
        SVD("svd", modules="*", whiten=True).sites(uneven())
