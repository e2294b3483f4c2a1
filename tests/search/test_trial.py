"""Trials against whole copies of the model, changed by hand and run by transformers."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pruning.methods.ziplm import Score
from pruning.models.sites import Kind
from pruning.search.options import Objective
from pruning.search.problem import build_problem
from pruning.search.search import Calibrated, Spdy
from pruning.search.text import draw_predictions, evaluation_text, with_repeats
from pruning.search.trial import CandidateEvaluator, _Dense, _Numbers
from pruning.system.cache import Cache
from pruning.system.precision import Precision
from tests.helpers.families import EVERY
from tests.helpers.tiny import (
    INF,
    job_with,
    linear_table,
    padded_batches,
    pruning_context,
    solve_levels,
    ziplm,
)

BATCHES = padded_batches()
OUTPUTS = {  # family: its blocks, and the output projections in a block
    "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "opt": ("model.decoder.layers", "self_attn.out_proj", "fc2"),
    "bert": ("bert.encoder.layer", "attention.output.dense", "output.dense"),
    "llama": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "gemma3": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h"),
}


@pytest.fixture(params=OUTPUTS, scope="module")
def case(request, tmp_path_factory):
    """Give a family, a model of it, and levels whose weights are the dense ones, masked."""
    model = EVERY[request.param]()
    directory = tmp_path_factory.mktemp(request.param)
    levels = solve_levels(model, BATCHES, directory, linear_table(model, 8), ridges=(INF,))
    return request.param, model, levels


@torch.no_grad()
def masked(family, model, levels, choice):
    """Return a copy of the model with zeros where the choice keeps nothing."""
    copy = deepcopy(model)
    layers, *paths = OUTPUTS[family]
    for (site, of), level in zip(levels.items(), choice, strict=True):
        path = dict(zip((Kind.ATTENTION, Kind.FFN), paths, strict=True))[site.kind]
        module = copy.get_submodule(layers)[site.block].get_submodule(path)
        keep = of.keeps[level].repeat_interleave(site.width)
        inputs = 0 if family == "gpt2" else 1  # Conv1D stores [inputs, outputs]
        module.weight.mul_(keep.unsqueeze(1 - inputs))
        if not keep.any() and module.bias is not None:
            module.bias.zero_()
        if not keep.any() and family == "bert":  # a sub-block goes with the norm behind it
            parent = copy.get_submodule(layers)[site.block].get_submodule(path.rpartition(".")[0])
            parent.LayerNorm = torch.nn.Identity()
    return copy


@torch.no_grad()
def reference(objective, dense, model, batches) -> float:
    """Return the KL divergence or the next-token loss, in nats per token."""
    total, count = 0.0, 0
    for batch in batches:
        z, z0 = (
            m(input_ids=batch.ids, attention_mask=batch.mask).logits.double()
            for m in (model, dense)
        )
        real = batch.mask.bool()
        if z.dim() == 2:  # a classifier: a prediction per row
            real = real.any(1)
        if objective is Objective.kl:
            p, q = z0[real].log_softmax(-1), z[real].log_softmax(-1)
            total += float(F.kl_div(q, p, reduction="sum", log_target=True))
            count += int(real.sum())
        else:
            labels = batch.ids.masked_fill(~real, -100)[:, 1:]
            loss = F.cross_entropy(z[:, :-1].transpose(1, 2), labels, reduction="sum")
            total += float(loss)
            count += int((labels != -100).sum())
    return total / count


def choices(levels):
    """Return the dense choice, some mixed ones, and the last level everywhere."""
    lengths = [len(of.shapes) for of in levels.values()]
    generator = torch.Generator().manual_seed(0)
    mixed = [[int(torch.randint(n, (1,), generator=generator)) for n in lengths] for _ in range(4)]
    return [[0] * len(lengths), *mixed, [n - 1 for n in lengths]]


@pytest.mark.parametrize("objective", list(Objective))
def test_evaluate_is_the_loss_of_the_whole_model(case, objective):
    family, model, levels = case
    refused_for_encoders(case, objective)
    seen = []
    with CandidateEvaluator(model, levels, BATCHES, objective) as trial:
        for choice in choices(levels):
            found = trial.evaluate(choice)
            copy = masked(family, _dense(case), levels, choice)
            expected = reference(objective, _dense(case), copy, BATCHES)
            # float32 logits: 1e-4 nats is some 1e-5 of the entropy of 128 tokens
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
            seen.append(expected)
        again = trial.evaluate(choices(levels)[1])
        assert again == pytest.approx(seen[1], rel=1e-4, abs=1e-4)  # whatever came between
    assert max(seen) - min(seen) > 0.1


def refused_for_encoders(case, objective):
    """Skip what has no meaning for a classifier, once it was refused."""
    if case[0] == "bert" and objective is Objective.task:
        with pytest.raises(ValueError, match=r"search\.objective=task .* for an encoder use kl"):
            CandidateEvaluator(case[1], case[2], BATCHES, objective)
        pytest.skip("next-token loss")


def _dense(case):
    """Build the dense model again: the one under trial has other weights installed."""
    return EVERY[case[0]]()


@pytest.mark.parametrize("objective", list(Objective))
def test_sensitivities_are_those_of_single_changes(case, objective):
    family, model, levels = case
    refused_for_encoders(case, objective)
    anchors = [sorted({1, len(of.shapes) - 1}) for of in levels.values()]
    with CandidateEvaluator(model, levels, BATCHES, objective) as trial:
        found = trial.sensitivities(anchors)
    dense = _dense(case)
    base = reference(objective, dense, dense, BATCHES)
    large = 0.0
    for index, of in enumerate(anchors):
        assert sorted(found[index]) == of
        for level in of:
            choice = [level if i == index else 0 for i in range(len(anchors))]
            loss = reference(objective, dense, masked(family, dense, levels, choice), BATCHES)
            assert found[index][level] == pytest.approx(max(0.0, loss - base), rel=1e-4, abs=2e-4)
            large = max(large, loss - base)
    assert large > 0.05


def test_weights_are_back_bit_by_bit(case):
    _, model, levels = case
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def changed() -> bool:
        return any(not torch.equal(before[n], t) for n, t in model.state_dict().items())

    last = choices(levels)[-1]
    with CandidateEvaluator(model, levels, BATCHES[:1], Objective.kl) as trial:
        trial.evaluate(last)
        assert changed()
    assert not changed()
    with (  # noqa: PT012 - the exception is the test's own
        pytest.raises(KeyboardInterrupt),
        CandidateEvaluator(model, levels, BATCHES[:1], Objective.kl) as trial,
    ):
        trial.evaluate(last)
        assert changed()
        raise KeyboardInterrupt
    assert not changed()


@torch.no_grad()
def test_solved_weights_are_what_is_evaluated(tmp_path):
    """With an update of the weights, a trial sees the model that has them."""
    model = EVERY["llama"]()
    levels = solve_levels(model, BATCHES, tmp_path, linear_table(model, 8), ridges=(0.1,))
    choice = choices(levels)[1]
    assert any(choice)
    with CandidateEvaluator(model, levels, BATCHES, Objective.kl) as trial:
        found = trial.evaluate(choice)
    updated = deepcopy(model)
    layers, *paths = OUTPUTS["llama"]
    for site, level in zip(levels, choice, strict=True):
        path = dict(zip((Kind.ATTENTION, Kind.FFN), paths, strict=True))[site.kind]
        W = updated.get_submodule(layers)[site.block].get_submodule(path).weight
        if level:
            W.copy_(levels.trial_weight(site, level, W.clone())[0])
    expected = reference(Objective.kl, model, updated, BATCHES)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("sequence", [1, 5, 100])
@pytest.mark.parametrize("tokens", [1, 12, 13, 30, 10_000])
def test_evaluation_text_is_held_out_and_enough(tokens, sequence):
    held = [row for b in BATCHES if b.held_out for row in b.split(1)]
    found = [row for b in evaluation_text(BATCHES, tokens, [sequence]) for row in b.split(1)]
    count = sum(row.tokens for row in found)
    assert count >= min(tokens, sum(row.tokens for row in held))
    assert count - found[-1].tokens < tokens
    assert all(row.held_out and row.tokens for row in found)
    for row, whole in zip(found, held, strict=False):  # first the beginning of every row
        assert torch.equal(row.ids, whole.ids[:, :sequence])
        assert torch.equal(row.mask, whole.mask[:, :sequence])


def test_row_lengths_share_the_tokens():
    """Half of the tokens, or a little more, in rows of each length; the longest first."""
    held = [row["input_ids"] for batch in BATCHES if batch.held_out for row in batch.rows()]
    found = [row["input_ids"] for b in evaluation_text(BATCHES, 24, [3, 12]) for row in b.rows()]
    expected = list[torch.Tensor]()
    for length in (12, 3):
        taken = 0
        for row in held:
            if taken < 12:
                expected.append(row[:length])
                taken += len(row[:length])
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_rows_shorter_than_all_lengths_are_taken_once(caplog):
    caplog.set_level("INFO")
    as_they_are = evaluation_text(BATCHES, 40, [None])
    assert not caplog.messages
    for lengths in ([1000], [None, 128]):
        caplog.clear()
        cut = evaluation_text(BATCHES, 40, lengths)
        assert [b.digest() for b in cut] == [b.digest() for b in as_they_are]
        (said,) = caplog.messages
        assert f"at most 12 tokens, {lengths[-1]} are asked for" in said


def test_all_of_the_held_out_text_when_more_is_asked_for():
    held = [b for b in BATCHES if b.held_out]
    found = evaluation_text(BATCHES, 10_000, [5])
    for of in (held, found):
        assert all(b.held_out for b in of)
    both = ([b.ids[b.mask.bool()] for b in of] for of in (held, found))
    real, taken = (torch.cat(ids).sort().values for ids in both)
    assert torch.equal(real, taken)


def test_divergence_of_near_twins_is_not_lost_in_rounding():
    """Against float64, for a vocabulary of real size: sum p log q alone is off by 0.02 there."""
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(64, 49_152, generator=generator)
    near = z + 0.05 * torch.randn(z.shape, generator=generator)
    p, q = z.double().log_softmax(-1), near.double().log_softmax(-1)
    expected = float(F.kl_div(q, p, reduction="sum", log_target=True))
    assert _Dense.from_logits(z).divergence(near) == pytest.approx(expected, rel=1e-3)
    assert _Dense.from_logits(z).divergence(z) == pytest.approx(0, abs=1e-9)


def test_a_classifier_is_judged_on_whole_rows():
    found = evaluation_text(BATCHES, 4, [5], whole=True)
    rows = [row for batch in found for row in batch.rows()]
    known = [row for batch in BATCHES if batch.held_out for row in batch.rows()]
    assert len(rows) == 4
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(rows, known))  # noqa: B905


@pytest.mark.parametrize(("share", "expected"), [(0, 0), (0.25, 4), (0.5, 9), (1, 18)])
def test_some_rows_say_their_first_half_again(share, expected):
    """Rows are padded, and 18: what is repeated is what is real."""
    given = [replace(batch, head=1) for batch in BATCHES]
    again, count = with_repeats(given, share), 0
    for batch, other in zip(given, again, strict=True):
        assert torch.equal(batch.mask, other.mask)
        for ids, row, real in zip(batch.ids, other.ids, batch.mask.sum(1).tolist(), strict=True):
            half = (real - 1) // 2
            changed = not torch.equal(ids, row)
            count += changed
            if changed:
                assert torch.equal(row[1 : 1 + half], row[1 + half : 1 + 2 * half])
            assert torch.equal(row[: 1 + half], ids[: 1 + half])
            assert torch.equal(row[1 + 2 * half :], ids[1 + 2 * half :])
    assert count == expected


def test_a_search_reads_repeats_of_a_decoder_alone(case):
    _, model, levels = case
    search = Calibrated(tokens=40, precision=Precision.float32, repeated=0.5)
    plain = replace(search, repeated=0.0)
    texts = []
    for one in (search, plain):
        with one.trial(model, levels, BATCHES) as trial:
            texts.append([state.batch.digest() for state in trial.states])
    assert (texts[0] == texts[1]) == (case[0] == "bert")


def fragile():
    """Make a float16 model whose sub-blocks keep each other's massive activations in bounds.

    In one channel of the stream, the FFNs of blocks 0 and 1 give 40,000 each and the attention
    between them -40,000: without it, the sum of 80,000 is beyond the 65,504 of float16.
    """
    model = EVERY["gpt2"]()
    for module, value in (
        (model.transformer.h[0].mlp.c_proj, 4e4),
        (model.transformer.h[1].attn.c_proj, -4e4),
        (model.transformer.h[1].mlp.c_proj, 4e4),
    ):
        module.bias.data[7] = value
    return model.half()


@torch.no_grad()
def test_what_overflows_is_infinitely_dear(tmp_path):
    """At 1fad669 a loss of NaN counted as an increase of 0, the best there was."""
    model = fragile()
    dense = model(BATCHES[2].ids, attention_mask=BATCHES[2].mask).logits
    assert dense.isfinite().all()
    table = linear_table(model, 8)
    levels = solve_levels(model, BATCHES, tmp_path, table, ridges=(INF,))
    last = [len(of.shapes) - 1 for of in levels.values()]
    gone = [0, 0, last[2], 0, 0, 0]
    pruned, _ = levels.cut(model, gone)
    assert not pruned(BATCHES[2].ids, attention_mask=BATCHES[2].mask).logits.isfinite().all()

    cache = Cache(tmp_path / "cache")
    with CandidateEvaluator(
        model, levels, evaluation_text(BATCHES, 64, [12]), Objective.kl
    ) as trial:
        problem = build_problem(levels, table, trial, cache)
        found = problem.sensitivities([0.5, 0.0])
        assert found[2][last[2]] == INF
        others = [loss for i, row in enumerate(found) for loss in row.values() if i != 2]
        assert np.isfinite(others).all()
        assert problem.evaluate([0] * len(last)) == pytest.approx(0, abs=1e-6)
        assert problem.evaluate(gone) == INF
        assert problem.history[-1]["best"] == pytest.approx(0, abs=1e-6)
        search = Calibrated(tokens=64, sequence_length=[12], steps=2, precision=Precision.float32)
        budget = 0.5 * table.dense
        choice = search.prepare(problem, budget)(budget)
    assert choice[2] != last[2]
    chosen, _ = levels.cut(model, choice)
    assert chosen(BATCHES[2].ids, attention_mask=BATCHES[2].mask).logits.isfinite().all()


def test_a_dense_model_that_overflows_is_no_reference(tmp_path):
    model = fragile()
    levels = solve_levels(model, BATCHES, tmp_path, linear_table(model, 8), ridges=(INF,))
    model.transformer.h[1].attn.c_proj.bias.data[7] = 0
    with pytest.raises(ValueError, match=r"^model\.dtype=float16: .* not finite"):
        CandidateEvaluator(model, levels, BATCHES, Objective.kl).evaluate([0] * len(levels))


def test_a_job_draws_its_candidates_by_its_seed(tmp_path):
    model, method = EVERY["llama"](), ziplm(Score.obs, [INF])
    search = Spdy(tokens=24, sequence_length=[12], steps=2, mutation=0.5, inits=3)

    def tried(seed: int) -> list[float]:
        job = replace(job_with(Cache(tmp_path)), seed=seed)
        context = pruning_context(model, BATCHES, search, job)
        plan = method.plan(replace(context, table=linear_table(model, 8)))
        return [entry["loss"] for entry in plan.search_history]

    assert tried(0) == tried(0)
    assert tried(0) != tried(1)


def test_two_regressions_differ_by_their_squares():
    """Of one number a row no softmax can be taken: it would always be 1."""
    dense, pruned = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [0.0]])
    assert _Numbers(dense).divergence(pruned) == pytest.approx(0.25 + 4)


@torch.no_grad()
def test_some_predictions_are_compared_behind_all_of_the_text(case):
    """By hand: the divergence of the whole model's logits at the drawn places alone."""
    family, model, levels = case
    if family == "bert":
        pytest.skip("a row is a prediction")
    choice = choices(levels)[1]
    with CandidateEvaluator(model, levels, BATCHES, Objective.kl, predictions=15) as trial:
        found, compared = trial.evaluate(choice), trial.compared
    copy, total = masked(family, _dense(case), levels, choice), 0.0
    for batch, drawn in zip(BATCHES, compared, strict=True):
        assert drawn.mask.sum() > 0
        assert not (drawn.mask & ~batch.mask).any()
        p, q = (
            m(input_ids=batch.ids, attention_mask=batch.mask).logits[drawn.mask.bool()]
            for m in (_dense(case), copy)
        )
        p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        total += float(F.kl_div(q, p, reduction="sum", log_target=True))
    count = sum(int(drawn.mask.sum()) for drawn in compared)
    assert abs(count - 15) <= len(BATCHES)
    assert found == pytest.approx(total / count, rel=1e-4, abs=1e-4)
    assert draw_predictions(BATCHES, 10**6) is BATCHES


def test_in_bfloat16_the_losses_are_nearly_the_same(case):
    _, model, levels = case
    anchors = [[len(of.shapes) - 1] for of in levels.values()]
    measured = []
    for in_bfloat16 in (False, True):
        with CandidateEvaluator(model, levels, BATCHES, Objective.kl, in_bfloat16) as trial:
            rows = trial.sensitivities(anchors)
        measured.append([row[at] for row, (at,) in zip(rows, anchors, strict=True)])
        assert model.dtype == torch.float32
    exact, quick = measured
    assert quick != exact
    # products are off by 2^-9 of their terms; divergences are of second order in that
    assert quick == pytest.approx(exact, rel=0.05, abs=2e-3)
