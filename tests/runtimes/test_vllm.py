"""vLLM, unpatched, continues texts as transformers does; and what is said where it cannot.

Tests marked slow need PRUNING_VLLM_PYTHON: the interpreter of an environment with vLLM.
"""

import gc
import os
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pruning.latency.measurement import Measurement
from pruning.latency.profile import NATIVE, profile
from pruning.models.modeling_pruned import factorise_
from pruning.models.shape import Heads, Width
from pruning.models.shrink import resized, shrink_
from pruning.models.sites import blocks, sites
from pruning.runtimes import vllm_engine
from pruning.runtimes.torch_eager import TorchEager
from pruning.runtimes.vllm import FAMILIES, VLLM, Precision
from pruning.runtimes.vllm_engine import (
    LOADS,
    Loaded,
    check_import,
    installed,
    limits,
    worker,
)
from pruning.runtimes.worker_process import Worker
from pruning.runtimes.workload import Phase, Workload
from tests.helpers.allocations import mixed
from tests.helpers.families import FAMILIES as EVERY
from tests.helpers.vllm import MADE, MODELS, PYTHON, continued, llama

IDS = torch.arange(5, 25).reshape(2, 10)
WORK = Workload(Phase.prefill, 1, 16)
EXACT = {"dtype": "float32", "enforce_eager": True, "model_impl": "auto"}
there = pytest.mark.skipif(PYTHON is None, reason="PRUNING_VLLM_PYTHON names no interpreter")


@pytest.fixture
def _there(monkeypatch):
    """Let vLLM be there, of some version."""
    monkeypatch.setattr(vllm_engine, "installed", lambda python: "1.2")
    monkeypatch.setattr(vllm_engine, "check_import", lambda python: None)


def test_an_interpreter_that_is_not_there_or_has_no_vllm_is_one_line():
    for call in (lambda p: VLLM(python=p).version, lambda p: VLLM(python=p).check(llama(), None)):
        with pytest.raises(ValueError, match=r"^runtime\.python=/no/python cannot be run: give"):
            call("/no/python")
        with pytest.raises(ValueError, match=r"^runtime=vllm: there is no vLLM for .*: give runt"):
            call(None)
    assert VLLM().interpreter == sys.executable


def test_torchvision_of_another_torch_is_named_with_the_remedy(monkeypatch):
    said = 'print(chr(123) + \'"error": "RuntimeError: torchvision::nms"}\', flush=True); input()'
    broken = Worker("vllm", "vLLM", "x", (sys.executable, "-c", f"input(); {said}"))
    monkeypatch.setattr(vllm_engine, "worker", lambda python: broken)
    check_import.cache_clear()
    with pytest.raises(ValueError, match=r"^runtime=vllm: torchvision.*pip uninstall -y torchvi"):
        check_import("python-there")


@pytest.mark.usefixtures("_there")
@pytest.mark.parametrize("family", EVERY)
def test_families_that_it_does_not_take_are_refused(family):
    assert set(FAMILIES) == set(MADE) <= {*EVERY}
    if family in FAMILIES:
        VLLM().check(MADE[family](), None)
        return
    model = EVERY[family]()
    said = rf"^runtime=vllm: .* family {model.config.model_type} are not served: g"
    with pytest.raises(ValueError, match=said):
        VLLM().check(model, None)


@pytest.mark.usefixtures("_there")
def test_small_heads_and_products_are_refused():
    with pytest.raises(ValueError, match=r"^runtime=vllm: its attention .* heads of 8 columns: g"):
        VLLM().check(EVERY["llama"](), None)
    model = llama()
    factorise_(blocks(model)[1], "mlp.up_proj", 4)
    with pytest.raises(ValueError, match=r"^runtime=vllm: projections .* not served: give"):
        VLLM().check(model, None)


@pytest.mark.usefixtures("_there")
def test_the_place_of_the_interpreter_changes_no_result_and_all_else_does():
    here = VLLM(python="/one/python")
    assert here.label == "vllm 1.2, auto, enforce_eager"
    assert here.choices == VLLM().choices
    assert here.choices != replace(here, enforce_eager=False).choices
    assert replace(here, precision=Precision.bfloat16).label == "vllm 1.2, bfloat16, enforce_eager"


def test_the_cache_holds_the_whole_batch():
    of_token = 2 * 4 * 32 * 4 * 3  # keys and values, float32, columns, heads, blocks
    found = limits(llama(), Workload(Phase.generate, 5, 100, 50))
    assert found == {"max_model_len": 228, "kv_cache_memory_bytes": (5 * 2 + 4) * 128 * of_token}
    assert limits(llama(), Workload(Phase.decode, 1, 250))["max_model_len"] == 256


class TwoCodes(TorchEager):
    """Runs a dense model twice as fast by code of its own."""

    native = True

    def end_to_end(self, model, work):
        return lambda: time.sleep(0.004)

    def as_pruned(self, model, work):
        return lambda: time.sleep(0.008)

    def block(self, model, work):
        return lambda block, index=0: lambda: time.sleep(0.001)


def test_a_table_is_of_the_code_of_pruned_models_and_its_speedups_are_not():
    model = llama()
    table = profile(model, Measurement(TwoCodes(), WORK, 3, 32, None, 0.1, 1), sites(model))
    whole = table.total({site: site.whole for site in sites(model)})
    assert table.dense < 0.8 * whole
    assert table.anchors["dense"][0] == pytest.approx(whole)
    assert len(table.raw[NATIVE]) == 3


def test_the_work_is_done_by_every_load_in_turn(monkeypatch):
    orders = []

    def ask(do, **values):
        orders.append((do, values.get("number")))
        return {"number": len(orders)}

    engine = SimpleNamespace(ask=ask, unused=[])
    monkeypatch.setattr(
        vllm_engine, "worker", lambda python: SimpleNamespace(process=lambda: engine)
    )
    loaded = Loaded(llama(), "python", WORK, EXACT)
    for _ in range(2 * LOADS):
        loaded()
    numbers = [*range(1, LOADS + 1)]
    assert [number for do, number in orders if do == "call"] == 2 * numbers
    del loaded
    gc.collect()
    assert engine.unused == numbers


@pytest.fixture(scope="module")
def _started():
    """Keep an engine between tests: it takes long to start."""
    torch.set_num_threads(1)
    engine = worker(PYTHON).process()
    yield
    assert engine


@pytest.mark.slow
@there
@pytest.mark.usefixtures("_started")
@pytest.mark.parametrize("name", MODELS)
def test_texts_are_continued_as_in_transformers(name):
    model = MODELS[name]()
    loaded = Loaded(model, PYTHON, Workload(Phase.generate, 2, 10, 64), EXACT)
    assert torch.equal(loaded.tokens(IDS, 64), continued(model, IDS, 64))


@pytest.mark.slow
@there
@pytest.mark.usefixtures("_started")
@pytest.mark.parametrize("phase", VLLM.phases, ids=str)
def test_every_phase_runs_however_often(phase):
    work = Workload(phase, 3, 40, 5 if phase is Phase.generate else 0)
    model, runtime = llama(), VLLM(python=PYTHON)
    runtime.check(model, None)
    call = runtime.end_to_end(model, work)
    for _ in range(150):  # sequences are begun again
        call()
    assert runtime.end_to_end(model, work) is call
    runtime.as_pruned(model, work)()
    shrink_(model, mixed(model))
    assert runtime.end_to_end(model, work) is not call


@pytest.mark.slow
@there
@pytest.mark.usefixtures("_started")
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_any_shape_are_timed_in_one_process(family):
    model = MADE[family]()
    call = VLLM(python=PYTHON, precision=Precision.float32).block(model, WORK)
    groups = sites(model)[0].groups
    shapes = [(Heads(0, 0), Width(width)) for width in (0, 96, 5)] + [(Heads(groups, 1), Width(0))]
    calls = [call(resized(model, *shape)) for shape in shapes]
    assert len({loaded.engine for loaded in calls}) == 1
    for loaded in calls:
        loaded()


@pytest.mark.slow
@there
def test_an_engine_that_is_killed_is_one_line_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine.tempfile, "tempdir", str(tmp_path))
    loaded = VLLM(python=PYTHON).end_to_end(llama(), WORK)
    assert not [*tmp_path.iterdir()]
    os.kill(loaded.engine.process.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match=r"^runtime=vllm: vLLM ended with SIGKILL \(.*\): give"):
        loaded()
    VLLM(python=PYTHON).end_to_end(llama(), WORK)()


@pytest.mark.slow
@there
def test_models_that_are_gone_leave_the_engine():
    assert installed(PYTHON)
    kept = VLLM(python=PYTHON).end_to_end(first := llama(), WORK)
    for _ in range(3):
        model = llama()
        VLLM(python=PYTHON).end_to_end(model, WORK)()
        del model
        gc.collect()
    assert kept.engine.unused
    kept()
    assert not kept.engine.unused
    assert first
