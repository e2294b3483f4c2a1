"""llama.cpp computes what transformers does, of every model that is written for it."""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import LlamaConfig

from pruning.latency.timer import Rounds, interleaved
from pruning.models.shape import Heads, Width
from pruning.models.shrink import resized, shrink_
from pruning.runtimes import llama_cpp_engine
from pruning.runtimes.gguf_file import write_gguf
from pruning.runtimes.gguf_precision import Precision
from pruning.runtimes.gguf_quantise import quantise_
from pruning.runtimes.llama_cpp import LlamaCpp
from pruning.runtimes.llama_cpp_engine import Loaded
from pruning.runtimes.worker_process import ENGINES
from pruning.runtimes.workload import Phase, Workload
from tests.helpers.allocations import mixed, uniform
from tests.helpers.families import EVERY, GATED, llama, qwen2, qwen3, random_model
from tests.helpers.tokenizers import README, byte_level, sentencepiece_like
from tests.helpers.written import LLAMA3, pruned, untied, with_output_biases, without

pytest.importorskip("llama_cpp", reason="needs the extra llama-cpp")
pytestmark = pytest.mark.job

IDS = torch.arange(5, 17).reshape(2, 6)  # mistral looks back no further
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
MODELS = {
    **{family: EVERY[family] for family in FAMILIES},
    **{f"{family}, uneven": lambda make=EVERY[family]: pruned(make()) for family in FAMILIES},
    "llama, fewer heads": lambda: shrink_(llama(), uniform(llama(), 3, 37)),
    "qwen2, fewer heads": lambda: shrink_(qwen2(), uniform(qwen2(), 2, 64)),
    "llama, untied": lambda: untied(llama()),
    "llama, untied, uneven": lambda: pruned(untied(llama())),
    "qwen3, untied": lambda: untied(qwen3()),
    "biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "biases, uneven": lambda: pruned(llama(attention_bias=True, mlp_bias=True)),
    "output biases": lambda: with_output_biases(qwen2()),
    "output biases, uneven": lambda: with_output_biases(pruned(llama())),
    "block 0 gone": lambda: without(llama(), (0, 0, 0, 0)),
    "block 1 gone": lambda: without(qwen3(), (1, 0, 0, 0)),
    "no attention in block 0": lambda: without(llama(), (0, 0, 0, 96)),
    "no attention at all": lambda: without(llama(), *((i, 0, 0, 96) for i in range(3))),
    "no FFN at all": lambda: without(llama(), *((i, 4, 2, 0) for i in range(3))),
    "scaled positions": lambda: llama(rope_parameters=LLAMA3),
    "scaled positions, uneven": lambda: pruned(llama(rope_parameters=LLAMA3)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name):
    model = MODELS[name]()
    expected = model(input_ids=IDS).logits
    found = Loaded(model, Precision.f32).logits(IDS, exact=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("precision", "most"),
    [(Precision.f16, 0.01), (Precision.q8_0, 0.05), (Precision.q4_k_m, 0.4)],
)
def test_logits_are_close_in_less_precision(precision, most):
    model = pruned(llama())
    served = LlamaCpp(precision=precision).served(model)
    expected, found = model(input_ids=IDS).logits, served(input_ids=IDS).logits
    assert (found - expected).abs().max() < most * expected.abs().max()
    assert served.config is model.config


def test_four_bits_where_rows_are_made_of_blocks_and_more_elsewhere(tmp_path):
    model = pruned(llama(hidden_size=256, intermediate_size=768, vocab_size=256))
    write_gguf(model, None, tmp_path / "a", Precision.q4_k_m)
    reader = GGUFReader(tmp_path / "a")
    stored = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert stored["blk.0.ffn_up.weight"] == "Q4_K"  # rows of 256
    assert stored["blk.1.ffn_down.weight"] == "Q4_K"  # of 768
    assert stored["blk.0.attn_output.weight"] == "Q5_0"  # of 192
    assert stored["blk.0.ffn_down.weight"] == "F16"  # of 385
    assert reader.fields["general.file_type"].contents() == 15
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_llama_cpp_cannot_quantise_is_one_line_and_stays(tmp_path):
    (tmp_path / "bad").write_bytes(b"GGUF and nothing more")
    wanted = r"^runtime=llama_cpp: .*cannot quantise .*: give"
    with pytest.raises(ValueError, match=wanted) as said:
        quantise_(tmp_path / "bad", 15, 1)
    assert "\n" not in str(said.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize("phase", ["prefill", "decode", "generate"])
def test_every_phase_runs_however_often(phase):
    model = llama()
    work = Workload(Phase(phase), 2, 9, 4 if phase == "generate" else 0)
    runtime = LlamaCpp()
    call = runtime.end_to_end(model, work)
    for _ in range(600):  # a cache that grew would be full
        call()
    assert runtime.end_to_end(model, work) is call
    shrink_(model, mixed(model))
    assert runtime.end_to_end(model, work) is not call


def test_blocks_of_any_shape_are_timed_in_one_process():
    model = llama()
    call = LlamaCpp().block(model, Workload(Phase.prefill, 1, 16))
    shapes = [(Heads(0, 0), Width(width)) for width in (0, 96, 5)]
    shapes += [(Heads(4, 2), Width(0)), (Heads(3, 1), Width(0))]
    calls = {shape: call(resized(model, *shape)) for shape in shapes}
    assert len({loaded.engine for loaded in calls.values()}) == 1
    timings = interleaved(calls, model.device, Rounds(3), "x")
    assert all(timing.p50 > 0 for timing in timings.values())


def test_an_engine_that_aborts_is_one_line_and_another_is_started():
    model, work = llama(), Workload(Phase.prefill, 1, 16)
    call = LlamaCpp().end_to_end(model, work)
    call.engine.said.write(b"GGML_ASSERT(x) failed\n")
    os.kill(call.engine.process.pid, signal.SIGABRT)
    said = r"^runtime=llama_cpp: llama\.cpp ended with SIGABRT \(GGML_ASSERT\(x\) failed\): give"
    for _ in range(2):
        with pytest.raises(ValueError, match=said):
            call()
    LlamaCpp().end_to_end(llama(), work)()


def test_a_file_that_it_cannot_read_is_one_line(tmp_path):
    loaded = Loaded(llama(), Precision.f32)
    (tmp_path / "bad").write_bytes(b"GGUF and nothing more")
    with pytest.raises(ValueError, match=r"^runtime=llama_cpp: the file cannot be loaded \(.*gguf"):
        loaded.engine.ask("load", path=str(tmp_path / "bad"))
    assert loaded.logits(IDS).shape == (2, 6, 128)


def test_nothing_is_left_when_models_go(tmp_path, monkeypatch):
    gc.collect()
    monkeypatch.setattr(llama_cpp_engine.tempfile, "tempdir", str(tmp_path))
    engines = len(ENGINES)
    first, second = llama(), llama()
    call = LlamaCpp().end_to_end(first, Workload(Phase.decode, 1, 16))
    LlamaCpp().end_to_end(second, Workload(Phase.decode, 1, 16))
    assert not [*tmp_path.iterdir()]
    process = call.engine.process
    del second
    gc.collect()
    assert call.engine.unused
    call()
    assert not call.engine.unused
    if not engines:
        del call, first
        gc.collect()
        assert process.poll() == 0


def test_the_process_ends_with_its_parent():
    code = (
        "import json, os, signal\n"
        "from pruning.runtimes.gguf_precision import Precision\n"
        "from pruning.runtimes.llama_cpp_engine import Loaded\n"
        "from tests.helpers.families import llama\n"
        "loaded = Loaded(llama(), Precision.f16)\n"
        "print(json.dumps(loaded.engine.process.pid), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    child = json.loads(done.stdout)
    for _ in range(100):
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().split()[2] == "Z":
                    return
        except FileNotFoundError:
            return
        signal.sigtimedwait([], 0.05)
    pytest.fail("the engine goes on")


def ids_there(path, text):
    """Return the tokens of a text as llama.cpp reads them."""
    api = pytest.importorskip("llama_cpp")
    options = api.llama_model_default_params()
    options.vocab_only = True
    model = api.llama_model_load_from_file(str(path).encode(), options)
    content = text.encode()
    room = (ctypes.c_int32 * (len(content) + 8))()
    vocabulary = api.llama_model_get_vocab(model)
    count = api.llama_tokenize(vocabulary, content, len(content), room, len(room), True, True)
    api.llama_model_free(model)
    return room[:count]


BYTES = pre_tokenizers.ByteLevel(False)
TOKENIZERS = {
    "llama 2": sentencepiece_like,
    "llama 2, metaspace": lambda: sentencepiece_like(metaspace=True),
    "gpt-2": lambda: byte_level(BYTES),
    "smollm": lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES])),
}
TEXTS = (
    "Hello world",
    "a  b\n\n\tc, don't",
    "It's 12345 o'clock; Grüße aus 数字 🙂",
    "one<|end|>two",
    README.read_text(encoding="utf-8")[:3000],
)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_has_the_same_tokens_there(tmp_path, name):
    tokenizer = TOKENIZERS[name]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    model = random_model(LlamaConfig(**(GATED | {"vocab_size": len(tokenizer)})))
    write_gguf(model, tokenizer, tmp_path / "a")
    later = "metaspace" in name  # llama.cpp adds a space behind special tokens, as Llama 2 did
    for text in (text for text in TEXTS if not (later and "<|end|>" in text)):
        assert ids_there(tmp_path / "a", text) == tokenizer(text)["input_ids"], text


def test_what_is_exported_is_the_model(tmp_path):
    model = pruned(llama())
    assert LlamaCpp(precision=Precision.f32).export(model, None, tmp_path) == "model.gguf"
    engine = Loaded(model, Precision.f32).engine
    number = engine.ask("load", path=str(tmp_path / "model.gguf"))["number"]
    found = engine.ask("logits", number=number, ids=IDS.tolist(), exact=True)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_label_says_engine_version_and_precision(monkeypatch):
    assert LlamaCpp(precision=Precision.q8_0).label.startswith("llama_cpp 0.3.")
    assert LlamaCpp(precision=Precision.q8_0).label.endswith(", q8_0")

    def missing(name):
        raise PackageNotFoundError

    monkeypatch.setattr("pruning.runtimes.runtime.version", missing)
    with pytest.raises(
        ValueError, match=r"^runtime=llama_cpp needs .* -m pip install '.*\[llama-cpp"
    ):
        LlamaCpp().end_to_end(llama(), Workload(Phase.prefill, 1, 16))
