"""FLOP's embeddings: clusters, gated products, and what is cut of them."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pruning.methods.flop.embedding import Tokens, directions
from pruning.methods.flop.gating import gated_, product, restored_
from pruning.methods.flop.learned import LearnedPlan
from pruning.methods.flop.recipe import Embedding
from pruning.models import checkpoint
from pruning.models.shape import Width
from pruning.models.sites import Kind
from tests.helpers.families import EVERY, FAMILIES
from tests.methods.test_flop import BATCHES, flop, half, moments_of, table_of

ENDS = [0.1, 0.5]
FAMILY = [
    "llama",
    "mistral",
    "gemma",
    "gemma3",
    "granite",
    "phi3",
    "gpt_neox",
    "gpt2",
    "opt",
    "bert",
    "distilbert",
]  # mistral's head is its own


def adaptive(**values):
    return flop(sparsity=0.4, embedding=Embedding.adaptive, clusters=ENDS, **values)


def gated(model, tmp_path, full: bool = False):
    """Insert gates in half of the terms, or in all of them."""
    method = adaptive()
    of, tokens = method.sites(model), Tokens.from_batches(BATCHES, model, ENDS)
    ranks = {s: s.whole for s in of} if full else half(of)
    ranks |= {site: site.whole if full else Width(max(1, site.units // 2)) for site in tokens.sizes}
    made = gated_(deepcopy(model), moments_of(model, of, tmp_path), ranks, method, tokens)
    return made.eval(), tokens, ranks, method


def test_clusters_are_by_frequency():
    model = FAMILIES["llama"]()
    tokens = Tokens.from_batches(BATCHES, model, ENDS)
    assert list(tokens.sizes.values()) == [13, 51, 64]  # of 128
    assert [site.name for site in tokens.sizes] == ["embedding.0", "embedding.1", "embedding.2"]
    ids = [i for batch in BATCHES for row in batch.rows() for i in row["input_ids"].tolist()]
    assert tokens.counts.tolist() == [ids.count(token) for token in range(128)]
    in_order = tokens.counts[tokens.position.argsort()].tolist()
    assert in_order == sorted(in_order, reverse=True)
    E = model.get_input_embeddings().weight
    first = tokens.rows(model)[next(iter(tokens.sizes))]
    assert torch.equal(first, E[tokens.position.argsort()[:13]])
    assert list(Tokens.from_batches(BATCHES, model, []).sizes.values()) == [128]


def test_directions_are_those_of_the_weighted_svd():
    generator = torch.Generator().manual_seed(0)
    E = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    counts = torch.randint(0, 50, (40,), generator=generator)
    U, energies = directions(E, counts)
    scale = np.sqrt(counts.numpy() + 1.0)[:, None]
    _, singular, V = np.linalg.svd(scale * E.numpy())
    np.testing.assert_allclose(energies.numpy(), singular**2, rtol=1e-9)
    for rank in (1, 5, 12):
        ours = E @ U[:, :rank] @ U[:, :rank].T
        best = E.numpy() @ V[:rank].T @ V[:rank]
        np.testing.assert_allclose(ours.numpy(), best, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILY)
def test_with_all_terms_it_is_the_dense_model(family, tmp_path):
    dense = EVERY[family]()
    made, *_ = gated(dense, tmp_path, full=True)
    for batch in BATCHES[:2]:
        inputs = batch.inputs(dense.device)
        torch.testing.assert_close(
            made(**inputs).logits, dense(**inputs).logits, rtol=1e-3, atol=1e-4
        )


def plan_of(dense, tmp_path) -> LearnedPlan:
    made, _, ranks, method = gated(dense, tmp_path)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for index, site in enumerate(ranks):
            log_alpha = product(made, site).gates.log_alpha
            log_alpha.copy_(3 * torch.randn(log_alpha.shape, generator=generator))
            if site.kind is Kind.EMBEDDING and index == len(ranks) - 3:
                log_alpha.fill_(9.0)  # the first cluster stays whole
    table = table_of(method.sites(dense))
    return LearnedPlan(dense, made, list(ranks), table, None, [])


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILY)
def test_what_is_cut_gives_what_the_gated_one_gives_and_a_stranger_loads_it(family, tmp_path):
    dense = EVERY[family]().double()
    plan = plan_of(dense, tmp_path)
    plan.trained.double()
    shapes = plan._exact(0.0)
    pruned, allocation = plan.build(shapes)
    embedding = pruned.get_input_embeddings()
    kept = [int(keep.sum()) for site, keep in allocation.items() if site.kind is Kind.EMBEDDING]
    hidden = dense.get_input_embeddings().weight.shape[1]
    sizes = list(Tokens.from_batches(BATCHES, dense, ENDS).sizes.values())
    assert embedding.sizes == sizes
    wholes = [kept[i] == min(sizes[i], hidden) for i in range(3)]
    assert embedding.ranks == [hidden if w else r for w, r in zip(wholes, kept, strict=True)]
    assert not all(wholes)
    numel = sum(s * (hidden if w else r) + (0 if w else r * hidden)
                for s, w, r in zip(sizes, wholes, kept, strict=True))  # fmt: skip
    assert sum(p.numel() for p in embedding.parameters()) == numel

    checkpoint.save(pruned, None, tmp_path / "model", card="")
    auto = AutoModelForCausalLM if family in FAMILIES else AutoModelForSequenceClassification
    loaded, info = auto.from_pretrained(
        tmp_path / "model", trust_remote_code=True, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for batch in BATCHES[:2]:
        inputs = batch.inputs(dense.device)
        real = batch.mask.bool() if family in FAMILIES else slice(None)
        theirs = plan.trained(**inputs).logits[real]
        torch.testing.assert_close(pruned(**inputs).logits[real], theirs, rtol=1e-9, atol=1e-9)
        assert torch.equal(loaded(**inputs).logits, pruned(**inputs).logits)
    count = sum(p.numel() for p in loaded.parameters())
    assert count == sum(p.numel() for p in pruned.parameters())
    if family in FAMILIES:
        ids = BATCHES[0].ids[:1, :4]
        tokens = [m.generate(ids, max_new_tokens=4, do_sample=False) for m in (pruned, loaded)]
        assert torch.equal(*tokens)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_it_comes_back_from_its_parameters(family, tmp_path):
    dense = FAMILIES[family]()
    made, tokens, ranks, method = gated(dense, tmp_path)
    for parameter in made.parameters():
        parameter.add_(0.01)
    again = deepcopy(dense)
    restored_(again, list(ranks), dict(made.named_parameters()), method, tokens)
    ids = BATCHES[0].ids
    assert torch.equal(again.eval()(input_ids=ids).logits, made(input_ids=ids).logits)


def test_a_tied_head_takes_the_gates_of_the_embedding(tmp_path):
    """One draw for both, and the gradient of both reaches it."""
    model, _, ranks, _ = gated(FAMILIES["qwen3"](), tmp_path)
    model.train()
    torch.manual_seed(0)
    model(input_ids=BATCHES[0].ids, labels=BATCHES[0].ids).loss.backward()
    embedding = model.get_input_embeddings()
    site = next(s for s in ranks if s.kind is Kind.EMBEDDING)
    open_and_shut = product(model, site)
    assert open_and_shut.gates.log_alpha.grad.abs().sum() > 0
    assert open_and_shut.A.grad.abs().sum() > 0
    hidden = torch.randn(2, 64)
    with torch.no_grad():
        rows = torch.stack([_row(embedding, token) for token in range(128)])
        torch.testing.assert_close(embedding.logits(hidden), hidden @ rows.T)


def _row(embedding, token: int):
    """Compute a token's embedding with the gates that were drawn last."""
    place = int(embedding.position[token])
    for part, z in zip(embedding.parts, embedding.drawn, strict=True):
        if place < part.A.shape[1]:
            return part.B @ (z * part.A[:, place])
        place -= part.A.shape[1]
    raise AssertionError(token)


def test_plain_errors():
    with pytest.raises(ValueError, match=r"^method\.embedding=adaptive saves parameters and no ti"):
        flop(embedding=Embedding.adaptive)
