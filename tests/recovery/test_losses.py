"""The losses of recovery against sums written out, and what gradients they give."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from pruning.models import blockwise
from pruning.models.blockwise import predictions
from pruning.models.shrink import shrink_
from pruning.models.sites import Kind, sites
from pruning.recovery.losses import distance, divergence
from pruning.recovery.recipe import Loss
from pruning.recovery.student import DistillationLoss
from pruning.tasks.training import own
from tests.helpers.families import ENCODERS, EVERY, FAMILIES, reader
from tests.helpers.tiny import padded_batches

BATCHES = padded_batches(2)
DISTILL = Loss(task=0.0, logits=1.0, hidden=1.0, temperature=2.0, relative=True)


def inputs(batch, family):
    labels = {"labels": batch.ids.masked_fill(batch.mask == 0, -100)}
    if family in ENCODERS:
        labels = {"labels": batch.ids[:, 0] % 3}
    return {"input_ids": batch.ids, "attention_mask": batch.mask} | labels


@pytest.fixture(params=[1, 2, 100], ids="{} at a time".format)
def rows_at_once(request, monkeypatch):
    monkeypatch.setattr(blockwise, "SOME", 7 * request.param)


@pytest.mark.usefixtures("rows_at_once")
def test_the_divergence_is_the_sum_of_its_definition():
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    T = 2.5
    p, q = ((x / T).softmax(-1) for x in (t, s))
    expected = (
        T**2
        * sum(float(p[i, c] * (p[i, c] / q[i, c]).log()) for i in range(5) for c in range(7))
        / 5
    )
    assert float(divergence(s.float(), t.float(), T)) == pytest.approx(expected, rel=1e-5)
    number = divergence(s[:, :1].float(), t[:, :1].float(), T)
    assert float(number) == pytest.approx(float((s[:, 0] - t[:, 0]).square().mean()), rel=1e-5)


@pytest.mark.usefixtures("rows_at_once")
def test_its_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    s, t = (torch.randn(3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda s: divergence(s, t, 1.7), s.requires_grad_())


def test_of_bfloat16_it_is_computed_in_float32():
    generator = torch.Generator().manual_seed(3)
    s, t = (torch.randn(5, 7, generator=generator).bfloat16() for _ in range(2))
    found = divergence(s.requires_grad_(), t, 1.0)
    assert found.dtype == torch.float32
    assert float(found.detach()) == float(divergence(s.detach().float(), t.float(), 1.0))
    found.backward()
    assert s.grad is not None
    p, q = (x.detach().float().softmax(-1) for x in (t, s))
    torch.testing.assert_close(s.grad.float(), (q - p) / 5, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("relative", [False, True])
def test_the_distance_counts_real_tokens_alone(relative):
    generator = torch.Generator().manual_seed(2)
    student, teacher = (
        [torch.randn(2, 4, 6, generator=generator) for _ in range(3)] for _ in range(2)
    )
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        of = [(b, j) for b in range(2) for j in range(4) if mask[b, j]]
        total += sum(
            float((s[b, j] - t[b, j]).square().sum())
            / (float(t[b, j].square().sum()) if relative else 1.0)
            for b, j in of
        ) / len(of)
    found = distance(student, teacher, mask, relative)
    assert float(found) == pytest.approx(total / 3, rel=1e-5)
    for s in student:
        s[0, 3] = 1e6  # padding
    assert torch.equal(distance(student, teacher, mask, relative), found)


@pytest.mark.parametrize("family", EVERY)
def test_a_student_that_is_its_teacher_has_the_tasks_loss_alone(family):
    """All sub-blocks kept: at step 0 recovery changes nothing of the loss."""
    teacher = EVERY[family]()
    lesson = DistillationLoss(
        Loss(task=1.0, logits=1.0, hidden=1.0, temperature=2.0, relative=True), teacher
    )
    for batch in BATCHES:
        given = inputs(batch, family)
        loss, _ = lesson(own(teacher).eval(), given)
        dense = teacher(**given).loss.item()
        assert loss.item() == pytest.approx(dense, rel=1e-5)
    means = lesson.means()
    assert means["logits_loss"] == pytest.approx(0, abs=1e-5)
    assert means["hidden_loss"] == pytest.approx(0, abs=1e-6)
    assert lesson.tokens == sum(batch.tokens for batch in BATCHES)


@pytest.mark.parametrize("family", EVERY)
def test_gradients_reach_every_parameter_that_is_left_and_none_of_the_teacher(family):
    teacher = EVERY[family]()
    allocation = {}
    for site in sites(teacher):
        keep = torch.ones(site.units, dtype=torch.bool)
        if site.block == 1:  # half of the FFN, and the attention goes whole
            keep[site.units // 2 if site.kind is Kind.FFN else 0 :] = False
        allocation[site] = keep
    student = own(shrink_(deepcopy(teacher), allocation))
    loss, _ = DistillationLoss(DISTILL, teacher)(student, inputs(BATCHES[0], family))
    loss.backward()
    positions = ("wpe", "embed_positions", "position_embeddings")  # rows beyond the text
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith(("k_proj.bias", "key.bias", "k_lin.bias")):
            continue  # softmax does not see what is added to every key
        if not any(part in name for part in positions):
            assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_readers_predict_two_places_a_row(family):
    model = reader(family)
    batch = BATCHES[0]
    out = model(input_ids=batch.ids, attention_mask=batch.mask)
    found = predictions(out, batch.mask)
    assert found.shape == (2 * len(batch.ids), batch.ids.shape[1])
    assert (found.softmax(-1)[batch.mask.eq(0).repeat(2, 1)] == 0).all()
    assert float(divergence(found, found, 1.0).detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_predict_at_every_real_token(family):
    batch = BATCHES[0]
    out = FAMILIES[family]()(input_ids=batch.ids, attention_mask=batch.mask)
    found = predictions(out, batch.mask)
    assert len(found) == batch.tokens
    mean = F.cross_entropy(found, found.softmax(-1))
    assert mean.isfinite()
