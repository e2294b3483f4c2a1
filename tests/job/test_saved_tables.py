"""Where a measured latency table is saved."""

import pytest

from pruning.composition import compose
from pruning.job.profile import file_name
from pruning.models.sites import sites
from pruning.runtimes.gguf_precision import Precision
from pruning.runtimes.llama_cpp import LlamaCpp
from pruning.runtimes.onnxruntime import OnnxRuntime
from pruning.runtimes.openvino import OpenVINO
from pruning.runtimes.openvino import Precision as Computed
from pruning.runtimes.torch_compile import TorchCompile
from pruning.runtimes.torch_eager import EAGER
from pruning.runtimes.vllm import VLLM
from pruning.system.cache import Cache
from tests.helpers.families import llama
from tests.helpers.tiny import linear_table

SETTING = {"phase": "prefill", "batch": 1, "sequence": 128, "tokens": 0, "dtype": "float32"}
RUNTIMES = [
    EAGER,
    TorchCompile(),
    *(LlamaCpp(precision=each) for each in Precision),
    *(OpenVINO(precision=each) for each in Computed),
    OnnxRuntime(),
    VLLM(),
    VLLM(enforce_eager=False),
]


@pytest.fixture
def names(monkeypatch) -> list[str]:
    """Return the name of the table of every runtime, whether it is installed or not."""
    monkeypatch.setattr("pruning.runtimes.runtime.version", lambda package: "1.2.3")
    monkeypatch.setattr("pruning.runtimes.vllm_engine.installed", lambda python: "1.2.3")
    table = linear_table(llama())
    made = []
    for runtime in RUNTIMES:
        table.setting = SETTING | {"runtime": runtime.label}
        made.append(file_name("tiny", "local", table))
    return made


def test_every_precision_of_an_engine_has_a_file_of_its_own(names):
    assert len(set(names)) == len(RUNTIMES)
    assert names[0] == "tiny-local-prefill-1x128-float32.json"
    assert names[1] == "tiny-local-prefill-1x128-float32-torch_compile.json"
    assert "tiny-local-prefill-1x128-float32-llama_cpp-1.2.3-q8_0.json" in names


def test_a_file_is_read_by_an_override_that_needs_no_quotes(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, table = llama(), linear_table(llama())
    for name in names:
        table.setting = SETTING | {"runtime": name}
        table.write(tmp_path / name)
        hardware = compose(["hardware=file", f"hardware.path={name}"]).hardware
        assert hardware.profile(model, sites(model), Cache(tmp_path / "cache")) == table
