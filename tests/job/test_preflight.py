"""What a model cannot read is refused; what it never reads is not."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch
from tokenizers import pre_tokenizers

from pruning.composition import compose
from pruning.evaluation.parts import ClassificationBenchmark
from pruning.evaluation.suite import Suite
from pruning.job.preflight import check_ids, preflight
from pruning.system.cache import Cache
from tests.helpers.families import ENCODERS, FAMILIES, llama, qwen3
from tests.helpers.tiny import word_tokenizer
from tests.helpers.tokenizers import byte_level
from tests.helpers.written import pruned, untied


def check(tmp_path, model, *overrides: str, words: str = "w1 w2 w3", size: int = 125) -> None:
    """Do what a job does between loading a model and the first stage."""
    (tmp_path / "text.txt").write_text(words)
    path = tmp_path / "text.txt"
    experiment = compose(
        [
            *(
                "calibration=text",
                f"calibration.text.path={path}",
                "calibration.sequence_length=64",
            ),
            *("suite=wikitext", f"suite.perplexity.text.path={path}"),
            *("suite.perplexity.window=[32]", *overrides),
        ]
    )
    cache = Cache(tmp_path / "cache")
    preflight(experiment, experiment.suite, model, word_tokenizer(size), cache)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "gemma"])
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], None),
        (
            ["calibration.sequence_length=129"],
            r"^calibration\.sequence_length=129 goes beyond the 128 positions",
        ),
        (["recovery=distill", "recovery.max_length=129"], r"^recovery\.max_length=129 goes beyond"),
        (["suite.perplexity.window=[32,129]"], r"^suite\.perplexity\.window=\[32, 129\] goes bey"),
    ],
)
def test_lengths_beyond_the_positions(tmp_path, family, overrides, said):
    model = FAMILIES[family]()
    model.config.max_position_embeddings = 128  # rotary positions would go on without a word
    if said is None:
        check(tmp_path, model, "calibration.sequence_length=128", *overrides)
    else:
        with pytest.raises(ValueError, match=said):
            check(tmp_path, model, *overrides)


def test_tokens_beyond_the_embedding_count_where_they_occur(tmp_path):
    model = FAMILIES["gpt2"]()  # 128 rows
    check(tmp_path, model, size=140)
    check(tmp_path, model, words="w1 w124", size=140)
    with pytest.raises(
        ValueError,
        match=r"^suite\.perplexity: token 128, 'w125', .* of 128 rows; the tokenizer has 143",
    ):
        check(tmp_path, model, words="w1 w125 w2", size=140)
    ids = [torch.tensor([[1, 2]]), torch.tensor([3, 128])]
    with pytest.raises(ValueError, match=r"^calibration: token 128, 'w125'"):
        check_ids(ids, model, word_tokenizer(140), "calibration")
    check_ids(ids[:1], model, word_tokenizer(140), "calibration")


@pytest.mark.parametrize("size", [125, 140])
def test_tokens_of_labelled_rows(tmp_path, size):
    (tmp_path / "rows.tsv").write_text("text\tlabel\nw1\t0\nw125 w2\t1\n")
    labelled = {"mine": ClassificationBenchmark(str(tmp_path / "rows.tsv"), columns=["text"])}
    suite = Suite("tiny", None, tasks={}, labelled=labelled, limit=None, batch_size=1)
    experiment = compose(["calibration=task", "task=sst2"])
    experiment.task.train = labelled["mine"]
    given = (ENCODERS["bert"](), word_tokenizer(size), Cache(tmp_path / "cache"))
    if size == 125:  # the word is an unknown one
        preflight(experiment, suite, *given)
        return
    with pytest.raises(ValueError, match=r"^task\.train: token 128, 'w125'"):
        preflight(experiment, suite, *given)
    experiment.task = None
    with pytest.raises(ValueError, match=r"^suite\.labelled\.mine: token 128, 'w125'"):
        preflight(experiment, suite, *given)


@pytest.fixture
def _installed(monkeypatch):
    """Let all engines be there, of some version."""
    monkeypatch.setattr("pruning.runtimes.runtime.version", lambda package: "1")


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (llama, r"the tokenizer \w+ \(WordLevel\) cannot be written to GGUF, .*: give a model"),
        (FAMILIES["gpt2"], r"models of the family gpt2 are not written to GGUF: give a model of"),
        (lambda: pruned(untied(qwen3())), r"a qwen3 of uneven blocks has no untied head there: gi"),
    ],
)
def test_what_gguf_cannot_hold_is_refused_before_any_work(tmp_path, make, said):
    with pytest.raises(ValueError, match=rf"^runtime=llama_cpp: {said}"):
        check(tmp_path, make(), "runtime=llama_cpp")
    for runtime in ("torch", "torch_compile", "onnxruntime", "openvino"):
        check(tmp_path, make(), f"runtime={runtime}")


@pytest.mark.usefixtures("_installed")
def test_what_gguf_holds_is_not_refused():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(False), 128)
    runtime = compose(["runtime=llama_cpp"]).runtime
    model = llama()
    model.config.vocab_size = len(tokenizer)
    runtime.check(model, tokenizer)
    model.config.vocab_size -= 1
    with pytest.raises(ValueError, match=r"^runtime=llama_cpp: the tokenizer has \d+ tokens and"):
        runtime.check(model, tokenizer)


@pytest.mark.parametrize("name", ["llama_cpp", "onnxruntime", "openvino"])
def test_an_engine_that_is_not_installed_is_named_first(tmp_path, name, monkeypatch):
    def missing(package: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr("pruning.runtimes.runtime.version", missing)
    with pytest.raises(ValueError, match=rf"^runtime={name} needs the package .* -m pip install"):
        check(tmp_path, FAMILIES["gpt2"](), f"runtime={name}")


@pytest.mark.parametrize("target", ["dense", "damped"])
def test_weights_behind_pruned_blocks_are_not_for_experts(target, tmp_path):
    said = rf"^calibration\.target={target} solves .*: give calibration\.target=local"
    with pytest.raises(ValueError, match=said):
        check(tmp_path, FAMILIES["mixtral"](), f"calibration.target={target}")


def test_processes_do_not_share_batches_for_experts(tmp_path):
    with pytest.raises(ValueError, match=r"^calibration\.launcher='torchrun' shares .*: give null"):
        check(tmp_path, FAMILIES["mixtral"](), "calibration.launcher=torchrun")
