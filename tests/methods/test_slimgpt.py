"""SlimGPT against a masked copy of the model that hooks look into."""

from dataclasses import replace

import pytest
import torch

from pruning.calibration.calibration import Target
from pruning.latency.local import Local
from pruning.methods.method import PruningContext
from pruning.methods.slimgpt import ChannelScore, HeadScore, SchedulePlan, SlimGPT
from pruning.models.shape import Width
from pruning.models.sites import Kind, projection, shape, sites, weight
from pruning.runtimes.workload import Phase
from pruning.search.options import Ramp
from pruning.search.schedule import share
from pruning.search.search import Schedule
from pruning.solver.obs import Units
from pruning.system.cache import Cache
from pruning.system.stopwatch import Stopwatch
from tests.helpers.data import lstsq
from tests.helpers.families import FAMILIES, llama
from tests.helpers.observed import masked, observed
from tests.helpers.shapes import shapes
from tests.helpers.tiny import job_with, linear_table, padded_batches, pruning_context, text

BATCHES = padded_batches(count=9)
RIDGE = 0.1


def slimgpt(**changes) -> SlimGPT:
    return replace(SlimGPT(smallest=8, decay=0, ridges=[RIDGE]), **changes)


def context(model, tmp_path, search=None, target=Target.local) -> PruningContext:
    search = search or Schedule("schedule", ramp=Ramp.log, first=0.0625, last=0.25)
    return pruning_context(model, BATCHES, search, job_with(Cache(tmp_path)), text(target))


@pytest.mark.job
@torch.no_grad()
@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3", "gpt_neox", "gpt2", "opt"])
def test_every_site_ends_at_least_squares_behind_pruned_blocks(family, target, tmp_path):
    model = FAMILIES[family]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    posed = context(model, tmp_path, target=target)
    plan = slimgpt().plan(posed)
    left = plan.choose(posed.table.budget(1.5))
    assert posed.table.total(left) <= posed.table.budget(1.5)
    pruned, allocation = plan.build(left)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert {site: shape(site, keep) for site, keep in allocation.items()} == left
    assert sum(not keep.all() for keep in allocation.values()) > 3
    shares = {update["site"]: update["share"] for update in plan.updates}
    assert shares.keys() == {site.name for site, keep in allocation.items() if not keep.all()}
    assert set(shares.values()) <= {*target.shares}

    copy = masked(model, pruned, allocation)  # all inputs are still there to be seen
    for batch in BATCHES:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        real = batch.mask.bool()
        expected = copy(**inputs).logits[real]
        torch.testing.assert_close(pruned(**inputs).logits[real], expected, rtol=1e-4, atol=1e-4)
    seen, gave = observed(copy, BATCHES), observed(model, BATCHES)
    of = {(s.block, s.kind): s for s in sites(pruned)}
    for site, keep in allocation.items():
        if keep.all():
            continue
        X, Y = seen[site].X, gave[site].Y
        columns = keep.repeat_interleave(site.width)
        W = weight(projection(model, site)).double()
        found = weight(projection(pruned, of[site.block, site.kind]))
        live = X.any(0)  # opt's ReLU leaves some channels without any input
        wanted = torch.lerp(X @ W.T, Y, shares[site.name])
        expected = lstsq(W, X, columns & live, RIDGE, wanted).float()
        # float32 moments and activations; the ridge bounds the condition
        torch.testing.assert_close(found[:, live[columns]], expected, rtol=1e-3, atol=2e-4)
        assert (found - W[:, columns]).abs().max() > 1e-3


@pytest.mark.parametrize("score", list(ChannelScore))
def test_channels_leave_by_the_score_that_is_asked_for(score, tmp_path):
    plan = slimgpt(ffn_score=score, smallest=1, largest=1).plan(context(llama(), tmp_path))
    torch.manual_seed(0)
    W, X = torch.randn(7, 24).double(), torch.randn(200, 24).double() @ torch.randn(24, 24).double()
    removal = plan._remove(W, X.T @ X, Units(steps=9))
    of_inputs = (W**2).sum(0) * (X**2).sum(0)  # the definition, by hand
    by_inputs = of_inputs.argsort()[:9].tolist()
    assert (removal.order.tolist() == by_inputs) is (score is ChannelScore.wanda)


def test_only_what_leaves_is_ordered(tmp_path, monkeypatch):
    """Of the lattice of grouped heads, what leads to the pair that is taken; of others, nothing."""
    model = llama()
    plan = slimgpt().plan(context(model, tmp_path))
    ordered, remove = [], SchedulePlan._remove

    def counted(self, W, H, units):
        ordered.append((units.width, units.steps))
        return remove(self, W, H, units)

    monkeypatch.setattr(SchedulePlan, "_remove", counted)
    pairs = shapes([(4, 2), (4, 1), (2, 1)])  # of four groups with two heads of eight columns
    left = {s: s.whole if s.kind is Kind.FFN else pairs[s.block] for s in sites(model)}
    allocation = plan.build(left)[1]
    assert {s: shape(s, keep) for s, keep in allocation.items()} == left
    assert [one for one in ordered if one[1]] == [(8, 4), (16, 2), (8, 2)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_activations_that_overflow_are_named(dtype, tmp_path):
    model = llama().to(dtype)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e5 if dtype is torch.float16 else 1e38)
    plan = slimgpt().plan(context(model, tmp_path))
    left = {s: Width(64) if s.kind is Kind.FFN else s.whole for s in sites(model)}
    with pytest.raises(ValueError, match=r"^calibration: .*block\.1\.ffn.* overflow") as error:
        plan.build(left)
    assert ("model.dtype" in str(error.value)) is (dtype is torch.float16)


def test_a_schedule_that_removes_nothing_gives_the_dense_model(tmp_path):
    """The closed loop may come to it, where noise says that nothing need be removed."""
    model = llama()
    plan = slimgpt().plan(context(model, tmp_path))
    shapes = plan.choose(linear_table(model).dense)
    built, allocation = plan.build(shapes)
    assert all(keep.all() for keep in allocation.values())
    ids = BATCHES[0].ids
    assert torch.equal(built(ids).logits, model(ids).logits)


@pytest.mark.parametrize("score", list(HeadScore))
def test_a_draft_is_as_large_as_the_model_to_come(score, tmp_path):
    model = llama()
    posed = context(model, tmp_path)
    plan = slimgpt(score=score).plan(posed)
    left = plan.choose(posed.table.budget(1.4))
    (draft, kept), (built, allocation) = plan.timing_model(left), plan.build(left)
    assert [s for s in sites(draft)] == [s for s in sites(built)]
    assert {s: int(k.sum()) for s, k in kept.items()} == {
        s: int(k.sum()) for s, k in allocation.items()
    }


def test_a_ratio_is_cut_within_half_a_unit_of_every_sub_block(tmp_path):
    model = llama()
    plan = slimgpt(ratio=0.2).plan(replace(context(model, tmp_path), speedup=None))
    uniform = Schedule("schedule", ramp=Ramp.uniform, first=0.1, last=0.1)
    even = slimgpt(ratio=0.2).plan(replace(context(model, tmp_path, uniform), speedup=None))
    for site, left in even.fixed_shapes.items():
        units = site.units if site.kind is Kind.FFN else 1
        # the nearest there is: half a channel, or half the gap between head counts
        gap = 1 / units if site.kind is Kind.FFN else 1 / 4
        assert abs(share(site, left) - 0.8) <= gap / 2 + 1e-9
    assert plan.fixed_shapes is not None
    assert plan.fixed_shapes != even.fixed_shapes


@pytest.mark.parametrize(
    ("channels", "groups", "first"),
    [(2752, 25, [1024, 304, 64, 64]), (5504, 54, [1024, 992, 240, 64]), (307, 5, [64, 64])],
)
def test_the_dynamic_group_size_is_the_published_one(channels, groups, first):
    """11,008 channels at 25 % and 50 %: 25 and 54 groups (ALGORITHMS of the released code)."""
    sizes = slimgpt(smallest=64, decay=512).group_sizes(channels)
    assert sizes[: len(first)] == first
    assert len(sizes) == groups
    assert sum(sizes) == channels


@pytest.mark.job
def test_meeting_a_speedup_builds_once(tmp_path, monkeypatch):
    from pruning.job.closed_loop import SpeedTarget, prune_to_speedup

    model = llama()
    work = {
        "phase": Phase.auto,
        "batch": 1,
        "sequence_length": 8,
        "max_new_tokens": 2,
        "alignment": 1,
    }
    loop = {"repetitions": 3, "tolerance": 0.5, "rounds": 4, "noise": None}
    hardware = Local("here", "cpu", None, **work, **loop)
    posed = context(model, tmp_path)
    plan = slimgpt().plan(posed)
    built = []
    build = SchedulePlan.build
    monkeypatch.setattr(SchedulePlan, "build", lambda p, s: built.append(s) or build(p, s))
    met = prune_to_speedup(model, plan, posed.table, SpeedTarget(1.3, hardware), Stopwatch())
    assert len(built) == 1
    assert met.measured == met.rounds[-1]["measured"]
    assert len(met.rounds) >= 2  # drafts, then the model itself
