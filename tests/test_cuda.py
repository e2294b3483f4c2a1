"""Whole jobs on a CUDA device, and the mathematics there beside the CPU's."""

import pytest
import torch

from pruning.calibration.calibration import Weight
from pruning.calibration.passes import collect
from pruning.models.sites import sites
from pruning.search.options import Objective
from pruning.search.trial import CandidateEvaluator
from pruning.solver.obs import Units, batched, by_wanda, greedy, least_squares
from tests.helpers.families import llama
from tests.helpers.place import Place
from tests.helpers.tiny import linear_table, padded_batches, solve_levels

pytestmark = pytest.mark.gpu

METRIC = "wikitext/text/token_perplexity_32"
# so much work that time is not that of launching kernels
WORK = ("hardware.device=cuda", "hardware.batch=2048", "hardware.sequence_length=64")
BY_COUNT = (
    "hardware=params",
    "hardware.device=cuda",
    "hardware.sequence_length=64",
)  # ranks this small save no time
OF_METHOD = {
    "svd": (*BY_COUNT, "speedup=1.1"),
    "flop": (
        *WORK,
        "hardware.alignment=16",
        "method.sparsity=0.35",
        "method.steps=20",
        "speedup=null",
    ),
}
METHODS = ["ziplm", "slimgpt", "flap", "wanda_sp", "magnitude", "depth", *OF_METHOD]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("cuda"))
    words = torch.randint(125, (6000,), generator=torch.Generator().manual_seed(7)).tolist()
    (place.root / "other.txt").write_text(" ".join(f"w{w}" for w in words))
    return place


def done(place, jobs, *overrides: str, outputs: str) -> dict:
    ended = jobs(*place.arguments(*overrides, outputs=outputs))
    assert ended.returncode == 0, ended.stderr[-3000:]
    (result,) = place.results(outputs)
    return result


@pytest.mark.parametrize("method", METHODS)
def test_a_job_of_every_method(place, jobs, method):
    given = OF_METHOD.get(method, (*WORK, "speedup=1.2"))
    result = done(place, jobs, f"method={method}", *given, outputs=method)
    assert result["params"]["pruned"] < result["params"]["dense"]
    assert result["environment"]["gpu"] == torch.cuda.get_device_name()
    before, after = (result["evaluation"][when][METRIC] for when in ("dense", "pruned"))
    assert 1 < before < 1000
    assert 1 < after < 10000


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_job_in_every_precision(place, jobs, dtype):
    given = [*WORK, f"model.dtype={dtype}", "speedup=1.2"]
    assert done(place, jobs, *given, outputs=f"of-{dtype}")["speedup"]["measured"] > 1


@pytest.mark.parametrize("phase", ["decode", "generate"])
def test_a_job_in_every_phase(place, jobs, phase):
    given = [*WORK, f"hardware.phase={phase}", "hardware.max_new_tokens=4", "speedup=1.2"]
    assert done(place, jobs, *given, outputs=phase)["speedup"]["measured"] > 1


@pytest.mark.parametrize("recovery", ["finetune", "distill", "lora", "local"])
def test_a_job_with_every_recovery(place, jobs, recovery):
    steps = ["epochs=1"] if recovery == "local" else ["steps=4", "max_length=32"]
    text = [] if recovery == "local" else [f"recovery.text.path={place.root / 'other.txt'}"]
    given = [
        f"recovery={recovery}",
        *(f"recovery.{each}" for each in steps),
        *text,
        *WORK,
        "speedup=1.2",
    ]
    assert done(place, jobs, *given, outputs=recovery)["recovery"]["kind"] == recovery


def test_the_solver_orders_and_solves_as_on_the_cpu():
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(24, 64, generator=draw, dtype=torch.float64)
    X = torch.randn(500, 64, generator=draw, dtype=torch.float64)
    H = X.T @ X / len(X)
    orders = {
        "heads": lambda W, H: greedy(W, H, Units(8), 0.01),
        "columns": lambda W, H: greedy(W, H, damp=0.01),
        "batched": lambda W, H: batched(W, H, [32, 16, 8, 8], 0.01),
        "wanda": lambda W, H: by_wanda(W, H),
    }
    for name, order in orders.items():
        here, there = order(W, H), order(W.cuda(), H.cuda())
        assert torch.equal(here.order, there.order.cpu()), name
        torch.testing.assert_close(there.score.cpu(), here.score, rtol=1e-9, atol=1e-12)
    keep = torch.arange(64) % 3 > 0
    here = least_squares(W, H, keep, 0.1)
    there = least_squares(W.cuda(), H.cuda(), keep.cuda(), 0.1)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighting", list(Weight))
def test_moments_are_those_of_the_cpu(weighting):
    model, batches = llama(), padded_batches()
    here = list(collect(model, batches, weighting, sites(model)))
    there = list(collect(model.cuda(), batches, weighting, sites(model)))
    for one, other in zip(here, there, strict=True):
        for site, split in one.items():
            for name in ("fit", "held"):
                mine, its = getattr(split, name).H, getattr(other[site], name).H.cpu()
                torch.testing.assert_close(its, mine, rtol=1e-3, atol=1e-4 * float(mine.max()))


def test_candidates_lose_what_they_lose_on_the_cpu(tmp_path):
    losses = []
    for device in ("cpu", "cuda"):
        model, batches = llama().to(device), padded_batches()
        levels = solve_levels(model, batches, tmp_path / device, linear_table(model, 16))
        held = [batch for batch in batches if batch.held_out]
        with CandidateEvaluator(model, levels, held, Objective.kl) as trial:
            losses.append([trial.evaluate([level] * len(levels)) for level in (0, 1, 2)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02, abs=1e-4)
