from copy import deepcopy

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    FalconConfig,
    FalconForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
)

from pruning.data.batch import Batch
from pruning.models.blockwise import embed, run_block
from pruning.models.checkpoint import load, save
from pruning.models.modeling_pruned import resize_block_
from pruning.models.shape import Experts
from pruning.models.shrink import copy_sharing_weights, mask_, shrink_
from pruning.models.sites import (
    Kind,
    Site,
    architecture,
    blocks,
    final,
    projection,
    set_weight_,
    shape,
    sites,
    weight,
)
from tests.helpers.allocations import experts, heads, mixed
from tests.helpers.families import (
    ENCODERS,
    EVERY,
    FAMILIES,
    GATED,
    ROUTING,
    llama,
    qwen3_moe,
    random_model,
)

IDS = torch.randint(3, 128, (2, 11), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.fixture(params=EVERY)
def model(request):
    return EVERY[request.param]()


@pytest.fixture(params=FAMILIES)
def decoder(request):
    return FAMILIES[request.param]()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masked_and_shrunk_agree(model, attention):
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("transformers caps its scores, which sdpa cannot")
    model.set_attn_implementation(attention)
    dense = logits(model)
    allocation = mixed(model)
    masked = logits(mask_(deepcopy(model), allocation))
    shrunk = shrink_(model, allocation)
    torch.testing.assert_close(logits(shrunk), masked, rtol=1e-4, atol=1e-5)
    assert (masked - dense).abs().max() > 0.1
    left = {(site.block, site.kind): site for site in sites(shrunk)}
    assert (1, Kind.ATTENTION) not in left
    assert not {(2, Kind.FFN), (2, Kind.EXPERTS)} & left.keys()
    assert left[0, Kind.ATTENTION].groups == allocation_groups(allocation)
    if (0, Kind.EXPERTS) in left:
        assert left[0, Kind.EXPERTS].whole == Experts(4, 16)
    else:
        assert left[0, Kind.FFN].units % 2 == 1


def allocation_groups(allocation):
    return next(shape(s, k).groups for s, k in allocation.items() if s.kind is Kind.ATTENTION)


def test_biases_of_llama_survive():
    model = llama(attention_bias=True, mlp_bias=True)
    allocation = mixed(model)
    masked = logits(mask_(deepcopy(model), allocation))
    torch.testing.assert_close(logits(shrink_(model, allocation)), masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [family for family in EVERY if family not in ROUTING])
def test_shrinking_twice_is_shrinking_once_more(family):
    model = EVERY[family]()
    allocation = {s: k for s, k in mixed(model).items() if k.any()}
    once = shrink_(copy_sharing_weights(model), allocation)
    site = next(s for s in sites(once) if s.kind is Kind.FFN)
    drop = torch.ones(site.units, dtype=torch.bool)
    drop[0] = False
    dense_site = Site(site.block, Kind.FFN, model_width(model), 1)
    both = allocation[dense_site].clone()
    both[both.nonzero()[0]] = False
    at_once = shrink_(copy_sharing_weights(model), allocation | {dense_site: both})
    assert torch.equal(logits(shrink_(once, {site: drop})), logits(at_once))


@pytest.mark.parametrize("family", ROUTING)
def test_experts_shrink_twice(family):
    model = EVERY[family]()
    site = next(s for s in sites(model) if s.kind is Kind.EXPERTS)
    first = experts(site, [1, 4], 16)
    once = shrink_(copy_sharing_weights(model), {site: first})
    later = next(s for s in sites(once) if s.kind is Kind.EXPERTS)
    second = experts(later, [2], 8)
    at_once = first.clone()
    at_once[first] = second
    assert shape(site, at_once) == Experts(3, 8)
    twice = logits(shrink_(once, {later: second}))
    assert torch.equal(twice, logits(shrink_(copy_sharing_weights(model), {site: at_once})))


@torch.no_grad()
@pytest.mark.parametrize("family", ROUTING)
def test_a_router_that_was_cut_chooses_as_if_the_others_were_not_there(family):
    """Gates of the best that are left, from their own logits alone; as many as before."""
    model = EVERY[family]()
    site = next(s for s in sites(model) if s.kind is Kind.EXPERTS)
    hidden = torch.randn(50, 64, generator=torch.Generator().manual_seed(2))
    router = blocks(model)[0].mlp.gate
    scores = hidden @ router.weight.T
    kept = [0, 2, 3, 5]
    p = scores[:, kept].softmax(-1)
    gates, places = p.topk(2)
    if family != "olmoe":
        gates = gates / gates.sum(-1, keepdim=True)
    keep = experts(site, [1, 4], 16)
    for cut, number in ((shrink_, places), (mask_, torch.tensor(kept)[places])):
        left = blocks(cut(deepcopy(model), {site: keep}))[0].mlp.gate
        _, found, chosen = left(hidden)
        assert left.top_k == 2
        assert torch.equal(chosen, number)
        torch.testing.assert_close(found, gates)


def test_blocks_with_and_without_experts_are_one_model(tmp_path):
    """qwen3_moe may have plain FFNs in some blocks; saved, all is there."""
    model = qwen3_moe(mlp_only_layers=[1])
    kinds = [site.kind for site in sites(model) if site.kind is not Kind.ATTENTION]
    assert kinds == [Kind.EXPERTS, Kind.FFN, Kind.EXPERTS]
    allocation = {}
    for site in sites(model):
        if site.kind is Kind.EXPERTS:
            allocation[site] = experts(site, [site.block], 16)
        elif site.kind is Kind.FFN:
            allocation[site] = torch.arange(site.units) % 3 > 0
    masked = logits(mask_(deepcopy(model), allocation))
    shrink_(model, allocation)
    torch.testing.assert_close(logits(model), masked, rtol=1e-4, atol=1e-5)
    save(model, None, tmp_path / "model", "")
    again = load(tmp_path / "model", torch.float32, torch.device("cpu"))
    assert [(s.kind, s.whole) for s in sites(again)] == [(s.kind, s.whole) for s in sites(model)]
    torch.testing.assert_close(logits(again), masked, rtol=1e-4, atol=1e-5)


def test_fewer_experts_than_a_token_is_routed_to_are_refused():
    model = EVERY["mixtral"]()
    site = next(s for s in sites(model) if s.kind is Kind.EXPERTS)
    said = r"block.0.experts: 1\*16 cannot be left of 6\*96, since every token is routed to 2"
    with pytest.raises(ValueError, match=said):
        shrink_(model, {site: experts(site, [0, 1, 2, 3, 4], 16)})
    with pytest.raises(ValueError, match="experts=1: every token is routed to 2"):
        resize_block_(blocks(model)[0], architecture(model), 4, 2, 16, 1)
    with pytest.raises(ValueError, match=r"experts of width 17: .* keep a multiple of 8"):
        shrink_(model, {site: experts(site, [0], 17)})
    uneven = experts(site, [0], 16)
    uneven[uneven.nonzero()[0]] = False
    with pytest.raises(ValueError, match=r"experts keep \[15, 16, .* keep the same number in each"):
        shrink_(model, {site: uneven})


def test_heads_that_one_norm_reads_leave_together():
    model = EVERY["olmoe"]()
    site = next(s for s in sites(model) if s.kind is Kind.ATTENTION and s.removable)
    with pytest.raises(ValueError, match="a norm reads all heads at once: keep all, or none"):
        shrink_(model, {site: heads(site, [0, 1], [[0, 1]] * 2)})


def model_width(model):
    return next(s.units for s in sites(model) if s.kind is Kind.FFN)


def test_keeping_all_is_bit_identical(model):
    dense = logits(model)
    modules = list(model.modules())
    shrink_(model, {s: torch.ones(s.units, dtype=torch.bool) for s in sites(model)})
    assert torch.equal(logits(model), dense)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))


def test_a_twin_shares_parameters_and_shrinking_it_leaves_them(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    dense = logits(model)
    other = copy_sharing_weights(model)
    shared = {id(p) for p in other.parameters()}
    assert shared == {id(p) for p in model.parameters()}
    shrink_(other, mixed(model))
    assert torch.equal(logits(model), dense)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    own = [p for p in other.parameters() if id(p) not in shared]
    old = {p.data_ptr() for p in model.parameters()}
    assert own
    assert not old & {p.data_ptr() for p in own}


def test_uneven_query_heads_are_refused():
    model = llama()
    site = sites(model)[0]
    uneven = heads(site, [0, 1], [[0, 1], [0]])
    with pytest.raises(ValueError, match=r"block.0.attention: kept KV groups keep \[2, 1\]"):
        shrink_(model, {site: uneven})


def test_the_first_attention_of_a_decoder_stays(decoder):
    site = sites(decoder)[0]
    with pytest.raises(ValueError, match="caches read the sequence length there"):
        shrink_(decoder, {site: torch.zeros(site.units, dtype=torch.bool)})


@torch.no_grad()
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_loses_the_norm_with_its_sub_block(family):
    """ALGORITHMS.md 1.3: the whole of attention or FFN, norm included, becomes the identity."""
    model = ENCODERS[family]()
    state = embed(model, Batch(IDS, torch.ones_like(IDS)))
    gone = {s: torch.zeros(s.units, dtype=torch.bool) for s in sites(model) if s.block == 0}
    assert all(site.removable for site in gone)
    block = blocks(shrink_(model, gone))[0]
    assert torch.equal(run_block(block, state.hidden, state.calls[0]), state.hidden)
    assert not list(block.parameters())


def test_heads_that_are_cut_twice_keep_their_own_bias_of_positions():
    model = ENCODERS["mpnet"]()
    first, rest = sites(model)[0], sites(model)[2]
    once = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1], dtype=torch.bool)
    twice = torch.tensor([0, 1, 1, 0, 1], dtype=torch.bool)
    both = once.clone()
    both[once.nonzero().flatten()[~twice]] = False
    allocation = {first: both, rest: ~once}
    masked = logits(mask_(deepcopy(model), allocation))
    cut = shrink_(copy_sharing_weights(model), {first: once, rest: ~once})
    before = logits(cut)
    again = shrink_(copy_sharing_weights(cut), {sites(cut)[0]: twice})
    torch.testing.assert_close(logits(again), masked, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(cut), before)
    assert blocks(again)[0].get_buffer("attention.attn.own_heads").tolist() == [2, 3, 7]


def test_the_first_attention_of_every_layer_type_stays():
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    model = random_model(Qwen2Config(**GATED, **windows))
    assert model.config.layer_types[1] == "sliding_attention"
    attention = [s for s in sites(model) if s.kind is Kind.ATTENTION]
    assert [s.removable for s in attention] == [False, False, True]
    site = attention[1]
    with pytest.raises(ValueError, match=r"block.1.attention: the first"):
        shrink_(model, {site: torch.zeros(site.units, dtype=torch.bool)})


def test_sites_name_what_is_there(model):
    found = sites(model)
    second = "experts" if found[1].kind is Kind.EXPERTS else "ffn"
    names = ["block.0.attention", f"block.0.{second}", "block.1.attention"]
    assert [s.name for s in found[:3]] == names
    for site in found:
        if site.kind is Kind.EXPERTS:
            continue
        module = projection(model, site)
        assert weight(module).shape == (64, site.columns)
        set_weight_(module, torch.full((64, site.columns), 0.5))
        assert bool((module.weight == 0.5).all())


def test_final_is_the_rest_of_the_model(decoder):
    seen = []
    handle = blocks(decoder)[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    expected = logits(decoder)
    handle.remove()
    hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    with torch.no_grad():
        assert torch.equal(final(decoder, hidden), expected)


def test_deberta_is_refused_where_blocks_or_heads_do_not_stand_alone():
    for values, said in (
        ({"conv_kernel_size": 3}, r"conv_kernel_size=3 .*between the blocks; use deberta-v3$"),
        ({"share_att_key": False}, r"share_att_key=False .*for every head; use deberta-v3$"),
    ):
        config = ENCODERS["deberta-v2"]().config
        config.update(values)
        with pytest.raises(ValueError, match=rf"^model: DeBERTa with {said}"):
            architecture(random_model(config))


def test_unsupported_models_are_named():
    tiny = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    layers = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 8,
        "ffn_hidden_size": 8,
    }
    falcon = FalconForCausalLM(FalconConfig(vocab_size=8, **layers))
    said = r"model: architecture '%s' is not supported; use one of llama, .*docs/extending\.md"
    with pytest.raises(ValueError, match=said % "falcon"):
        architecture(falcon)
    olmo2 = Olmo2ForCausalLM(Olmo2Config(vocab_size=8, num_hidden_layers=1, **tiny))
    with pytest.raises(ValueError, match=said % "olmo2"):  # norms over all heads at once
        architecture(olmo2)
    bert = BertLMHeadModel(BertConfig(vocab_size=8, num_hidden_layers=1, is_decoder=True, **tiny))
    with pytest.raises(ValueError, match="model: BertLMHeadModel is not supported"):
        architecture(bert)
    config = OPTConfig(
        vocab_size=8,
        hidden_size=8,
        num_attention_heads=2,
        ffn_dim=8,
        num_hidden_layers=1,
        do_layer_norm_before=False,
    )
    with pytest.raises(ValueError, match="do_layer_norm_before=False"):
        sites(OPTForCausalLM(config))
