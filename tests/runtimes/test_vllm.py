"""vLLM, unpatched, continues texts as transformers does; and what is said where it cannot.

Tests marked slow need PRUNING_VLLM_PYTHON: the interpreter of an environment with vLLM.
"""

import ast
import gc
import os
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pruning.latency import timer
from pruning.latency.measurement import Measurement
from pruning.latency.profile import NATIVE, profile
from pruning.models import modeling_pruned
from pruning.models.checkpoint import save
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
from pruning.runtimes.vllm_plugin import FAMILIES as PLUGGED
from pruning.runtimes.vllm_plugin import LAZY, architecture
from pruning.runtimes.worker_process import Worker
from pruning.runtimes.workload import Phase, Workload
from tests.helpers.allocations import mixed
from tests.helpers.families import FAMILIES as EVERY
from tests.helpers.vllm import MADE, MODELS, PYTHON, continued, llama

ROOT = Path(__file__).parents[2]
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
@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_the_plugin_does_not_take_are_refused(family):
    runtime, model = VLLM(plugin=True), MADE[family]()
    if family in PLUGGED:
        runtime.check(model, None)
        return
    with pytest.raises(ValueError, match=rf"^runtime\.plugin=true: .* family {family}: give a mod"):
        runtime.check(model, None)


def test_by_the_plugin_dense_and_pruned_models_run_by_one_code(monkeypatch):
    asked = []
    monkeypatch.setattr(vllm_engine, "installed", lambda python: "1.2")

    def load(*values):
        asked.append(values[3])
        return list  # a call

    monkeypatch.setattr(vllm_engine, "Loaded", load)
    for plugin in (False, True):
        runtime, model = VLLM(plugin=plugin), llama()
        runtime.end_to_end(model, WORK)
        runtime.as_pruned(model, WORK)
        runtime.block(model, WORK)(blocks(model)[0])
    codes = [options["model_impl"] for options in asked]
    assert codes == ["auto", "transformers", "transformers", *["plugin"] * 3]
    assert (VLLM().native, VLLM(plugin=True).native) == (True, False)


def test_the_plugin_imports_nothing_and_is_named_in_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {
        "pruning": "pruning.runtimes.vllm_plugin:register"
    }
    code = f"import sys; from {LAZY.partition('.vllm_pruned')[0]} import vllm_plugin as plugin; "
    code += "print([n for n in ('torch', 'omegaconf', 'numpy', 'vllm') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    module, _, name = LAZY.partition(":")
    source = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert name in {node.name for node in source.body if isinstance(node, ast.ClassDef)}
    assert {architecture(f"{family}ForCausalLM") for family in PLUGGED.values()} <= {
        *vars(modeling_pruned)
    }


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
    assert replace(here, plugin=True).label == "vllm 1.2, auto, enforce_eager, plugin"


def test_the_cache_holds_the_whole_batch():
    of_token = 2 * 4 * 32 * 4 * 3  # keys and values, float32, columns, heads, blocks
    found = limits(llama(), Workload(Phase.generate, 5, 100, 50))
    assert found == {"max_model_len": 228, "kv_cache_memory_bytes": (5 * 2 + 4) * 128 * of_token}
    assert limits(llama(), Workload(Phase.decode, 1, 250))["max_model_len"] == 256


class TwoCodes(TorchEager):
    """Runs a dense model twice as fast by code of its own, on a clock that only calls advance."""

    def __init__(self):
        self.nanoseconds = 0

    def _takes(self, milliseconds):
        def call():
            self.nanoseconds += milliseconds * 1_000_000

        return call

    @property
    def native(self):
        return True

    def end_to_end(self, model, work):
        return self._takes(4)

    def as_pruned(self, model, work):
        return self._takes(8)

    def block(self, model, work):
        return lambda block, index=0: self._takes(1)


def test_a_table_is_of_the_code_of_pruned_models_and_its_speedups_are_not(monkeypatch):
    model, runtime = llama(), TwoCodes()
    monkeypatch.setattr(timer.time, "perf_counter_ns", lambda: runtime.nanoseconds)
    monkeypatch.setattr(timer.time, "perf_counter", lambda: runtime.nanoseconds / 1e9)
    table = profile(model, Measurement(runtime, WORK, 3, 32, None, 0.1, 1), sites(model))
    whole = table.total({site: site.whole for site in sites(model)})
    assert table.dense == 4
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
    loaded = Loaded(llama(), "python", WORK, EXACT, LOADS)
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
@pytest.mark.parametrize("code", ["auto", "plugin"])
@pytest.mark.parametrize("name", MODELS)
def test_texts_are_continued_as_in_transformers(name, code):
    model = MODELS[name]()
    if code == "plugin" and model.config.model_type not in PLUGGED:
        pytest.skip("the plugin does not serve the family")
    options = EXACT | {"model_impl": code}
    loaded = Loaded(model, PYTHON, Workload(Phase.generate, 2, 10, 64), options)
    assert torch.equal(loaded.tokens(IDS, 64), continued(model, IDS, 64))


ENTRY = """
import sys
import torch
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(
        sys.argv[1], dtype="float32", enforce_eager=True, skip_tokenizer_init=True,
        max_model_len=128, kv_cache_memory_bytes=1 << 24, generation_config="vllm",
    )
    options = SamplingParams(
        temperature=0.0, max_tokens=64, ignore_eos=True, detokenize=False
    )
    answer = llm.generate([{"prompt_token_ids": list(range(5, 15))}], options, use_tqdm=False)
    print(*llm.llm_engine.model_config.architectures, file=sys.stderr)
    print("TOKENS", *answer[0].outputs[0].token_ids)
"""


@pytest.mark.slow
@there
def test_vllm_finds_the_plugin_by_its_entry_point_and_runs_no_remote_code(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed_as = tmp_path / "site" / "inference_aware_pruning-1.dist-info"
    installed_as.mkdir(parents=True)
    (installed_as / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1\n")
    group = "vllm.general_plugins"
    lines = [f"{name} = {value}" for name, value in project["entry-points"][group].items()]
    (installed_as / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    model = MODELS["qwen3, uneven"]()
    save(model, None, tmp_path / "model", "")
    (tmp_path / "serve.py").write_text(ENTRY)
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    command = [PYTHON, str(tmp_path / "serve.py"), str(tmp_path / "model")]
    environment = os.environ | dict(worker(PYTHON).environment) | {"PYTHONPATH": path}
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]  # its engine is a process of its own
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    said = [line for line in done.stdout.splitlines() if line.startswith("TOKENS")]
    assert said, done.stderr[-3000:]
    expected = continued(model, torch.arange(5, 15)[None], 64)
    assert [*map(int, said[0].split()[1:])] == expected[0].tolist()


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
@pytest.mark.parametrize(
    ("family", "plugin"),
    [*((name, False) for name in FAMILIES), *((name, True) for name in PLUGGED)],
)
def test_blocks_of_any_shape_are_timed_in_one_process(family, plugin):
    model = MADE[family]()
    runtime = VLLM(python=PYTHON, precision=Precision.float32, plugin=plugin)
    call = runtime.block(model, WORK)
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
