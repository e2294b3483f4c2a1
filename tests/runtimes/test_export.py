"""`python -m pruning export`: a finished model for engines, named by what is written."""

from functools import partial

import pytest

from pruning import cli
from pruning.composition import SCHEMAS
from pruning.job import export as exporting
from pruning.job.export import FORMATS, engines
from pruning.models import checkpoint
from pruning.results.serving import CODE, LEFT
from tests.helpers.families import EVERY, llama
from tests.helpers.older import make_older_
from tests.helpers.tiny import word_tokenizer
from tests.helpers.tokenizers import sentencepiece_like
from tests.helpers.written import pruned

ENGINES = "llama_cpp", "onnxruntime", "openvino"  # as they are imported


def test_every_runtime_with_a_format_of_its_own_has_a_name_for_it():
    known = [name for name, kind in SCHEMAS["runtime"].items() if kind.exports]
    assert sorted(FORMATS.values()) == sorted(known)
    assert sorted(LEFT) == sorted(CODE) == sorted(known)


def test_a_precision_is_of_the_formats_that_have_it():
    labels = {r.name: r.choices["precision"] for r in engines("gguf,onnx,openvino", "q8_0")}
    assert labels == {"llama_cpp": "q8_0", "onnxruntime": "float32", "openvino": "auto"}
    labels = {r.name: r.choices["precision"] for r in engines("openvino,gguf,onnx", "int8")}
    assert labels == {"openvino": "int8", "llama_cpp": "f16", "onnxruntime": "int8"}
    assert [r.name for r in engines("onnx,onnxruntime", None)] == ["onnxruntime"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--to tflite", "--to=tflite: 'tflite' is no format to export to: give gguf, onnx, open"),
        ("--to gguf,torch", "'torch' is no format to export to"),
        ("--to onnx --precision q8_0", "is in none of them: onnxruntime has float32, int8"),
        ("--to gguf", "is no checkpoint"),
    ],
)
def test_what_cannot_be_exported_is_one_line(words, said, tmp_path, capsys):
    assert cli.main(["export", str(tmp_path), *words.split()]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_help_names_every_format_and_runtime(capsys):
    assert cli.main(["export", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*FORMATS, *FORMATS.values()))


def test_nothing_is_written_where_one_engine_cannot_have_the_model(tmp_path, monkeypatch):
    checkpoint.save(llama(vocab_size=600), sentencepiece_like(), tmp_path / "model", "")
    first, last = engines("onnx,gguf", None)
    monkeypatch.setattr(type(first), "check", lambda *_: None)

    def refuses(*_):
        raise ValueError("not this one")

    monkeypatch.setattr(type(last), "check", refuses)
    with pytest.raises(ValueError, match="not this one"):
        exporting.export(tmp_path / "model", [first, last])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.job
@pytest.mark.filterwarnings("ignore")  # of exporters
def test_three_formats_by_one_command(tmp_path, capsys, monkeypatch):
    for engine in ENGINES:
        pytest.importorskip(engine)
    checkpoint.save(pruned(llama(vocab_size=600)), sentencepiece_like(), tmp_path / "model", "")
    words = ["--to", "gguf,onnx,openvino", "--precision", "q8_0"]
    assert cli.main(["export", str(tmp_path / "model"), *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "same tokens" in line]
    wanted = ("model.gguf", "q8_0"), ("onnxruntime", "float32"), ("openvino", "auto")
    for line, (name, precision) in zip(lines, wanted, strict=True):
        assert line.startswith(f"{tmp_path / name} (")
        assert f", {precision}): " in line
    monkeypatch.chdir(tmp_path)
    for code in CODE.values():  # as model cards have it
        exec(code, {})
    out = capsys.readouterr().out
    assert out.count("input_ids") == out.count("past.0.key") == 2


@pytest.mark.job
@pytest.mark.filterwarnings("ignore")  # of exporters
@pytest.mark.parametrize(("family", "to"), [("llama", "gguf,onnx"), ("gpt2", "onnx")])
def test_a_result_of_an_older_version_is_exported(family, to, tmp_path, capsys, monkeypatch):
    """A job's directory with nothing but a checkpoint: no result that names a runtime."""
    for engine in ("llama_cpp", "onnxruntime"):
        pytest.importorskip(engine)
    make = partial(llama, vocab_size=600) if family == "llama" else EVERY[family]
    tokenizer = sentencepiece_like() if family == "llama" else word_tokenizer()
    checkpoint.save(pruned(make()), tokenizer, tmp_path / "model", "")
    make_older_(tmp_path / "model", monkeypatch)
    precision = ["--precision", "f32"] if "gguf" in to else []
    assert cli.main(["export", str(tmp_path / "model"), "--to", to, *precision]) == 0
    out = capsys.readouterr()
    lines = [line for line in out.out.splitlines() if "same tokens" in line]
    assert len(lines) == len(to.split(","))
    assert all(": 100% same tokens" in line for line in lines)
    assert "per-layer" not in out.err
