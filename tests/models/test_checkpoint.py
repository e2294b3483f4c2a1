import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    Phi3Config,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from pruning.models.checkpoint import describe, load, older, save
from pruning.models.modeling_pruned import head_size
from pruning.models.shrink import factor_, shrink_
from pruning.models.sites import architecture, blocks, linears, projection, sites, weight
from tests.helpers.allocations import mixed, uniform
from tests.helpers.families import ENCODERS, FAMILIES, GATED, llama, random_model, reader
from tests.helpers.tiny import word_tokenizer

HERE = torch.float32, torch.device("cpu")
IDS = torch.randint(3, 128, (2, 11), generator=torch.Generator().manual_seed(3))

# family: KV groups and FFN width of every block, and the model_type of the plain checkpoint
PLAIN = {
    "llama": (2, 40, "llama"),
    "llama-as-mistral": (3, 40, "mistral"),
    "mistral": (3, 41, "mistral"),
    "qwen2": (3, 41, "qwen2"),
    "qwen3": (3, 41, "qwen3"),
    "gemma": (3, 41, "gemma"),
    "gemma2": (2, 41, "gemma2"),
    "gemma3": (2, 41, "gemma3_text"),
    "phi3": (3, 41, "phi3"),
    "smollm3": (3, 41, "smollm3"),
    "granite": (3, 41, "granite"),
    "gpt_neox": (None, 41, "gpt_neox"),
    "gpt2": (None, 41, "gpt2"),
    "opt": (None, 41, "opt"),
    "qwen3_moe": (3, 16, "qwen3_moe"),
    "mixtral": (3, 16, "mixtral"),
    "olmoe": (None, 16, "olmoe"),
}

STRANGER = """
import json, sys
from pathlib import Path

sys.modules["pruning"] = None
try:
    import pruning
    raise SystemExit("pruning is importable here")
except ImportError:
    pass

import torch
torch.set_num_threads(1)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf

class Heard(__import__("logging").Handler):
    lines = []
    def emit(self, record):
        self.lines.append(record.getMessage())

hf.get_logger().addHandler(Heard())
hf.disable_progress_bar()
root = Path(sys.argv[1])
ids = load_file(root / "ids.safetensors")["ids"]
found = {}
for path in sorted(p for p in root.iterdir() if p.is_dir()):
    trust = path.name.startswith("mixed")
    Heard.lines.clear()
    model, info = AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, **({"trust_remote_code": True} if trust else {})
    )
    facts = {name: len(keys) for name, keys in info.items()}
    with torch.no_grad():
        out = {"logits": model(input_ids=ids).logits}
        options = dict(do_sample=False, max_new_tokens=8, min_new_tokens=8)
        cut = ids[:, :7]
        out["dynamic"] = model.generate(cut, **options)
        out["static"] = model.generate(cut, cache_implementation="static", **options)
        out["none"] = model.generate(cut, use_cache=False, **options)
        out["lookup"] = model.generate(cut[:1], prompt_lookup_num_tokens=3, **options)
        if trust:
            model.save_pretrained(root.parent / "again" / path.name)
            again = AutoModelForCausalLM.from_pretrained(
                root.parent / "again" / path.name, trust_remote_code=True
            )
            out["again"] = again(input_ids=ids).logits
            fresh = AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)
            facts["finite"] = all(bool(p.isfinite().all()) for p in fresh.parameters())
            facts["own_class"] = type(model).__name__
        facts["tied"] = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        facts["warnings"] = list(Heard.lines)
        out["loss"] = model(input_ids=ids, labels=ids).loss[None]
    save_file({k: v.contiguous() for k, v in out.items()}, root / (path.name + ".safetensors"))
    found[path.name] = facts
print(json.dumps(found))
"""


def low_rank(model):
    """Make every other projection that is left a product of two."""
    for site in linears(model)[::2]:
        old = projection(model, site)
        W = weight(old)
        U, S, V = torch.linalg.svd(W)
        rank = site.units // 3
        factor_(model, site, V[:rank], U[:, :rank] * S[:rank], old.bias)


@torch.no_grad()
def answers(model):
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    return {
        "logits": model(input_ids=IDS).logits,
        "loss": model(input_ids=IDS, labels=IDS).loss[None],
        "tokens": model.generate(IDS[:, :7], use_cache=False, **options),
    }


def elsewhere(script: str, root: Path) -> str:
    """Run a script on the checkpoints in `root` in a directory and process of its own."""
    place = root.parent / "elsewhere"
    place.mkdir()
    (place / "stranger.py").write_text(script)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root.parent / "hf")}
    done = subprocess.run(
        [sys.executable, "stranger.py", str(root)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Save every checkpoint, load them all where `pruning` does not exist; return what came."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("checkpoints")
    expected = {}
    for family, make in FAMILIES.items():
        model = make()
        shrink_(model, mixed(model))
        save(model, None, root / f"mixed-{family}", "# card")
        expected[f"mixed-{family}"] = answers(model)
        low_rank(model)
        save(model, None, root / f"mixed-{family}-ranks", "# card")
        expected[f"mixed-{family}-ranks"] = answers(model)
    for name, (groups, width, _) in PLAIN.items():
        model = FAMILIES[name.split("-")[0]]()
        shrink_(model, uniform(model, groups, width))
        save(model, None, root / f"plain-{name}", "# card")
        expected[f"plain-{name}"] = answers(model)
    save_file({"ids": IDS}, root / "ids.safetensors")
    out = elsewhere(STRANGER, root)
    facts = json.loads(out.splitlines()[-1])
    found = {name: load_file(root / f"{name}.safetensors") for name in expected}
    return root, expected, found, facts


NAMES = [*(f"mixed-{family}{what}" for family in FAMILIES for what in ("", "-ranks"))]
NAMES += [*(f"plain-{name}" for name in PLAIN)]


@pytest.mark.job
@pytest.mark.parametrize("name", NAMES)
def test_a_stranger_gets_the_same_model(stranger, name):
    _, expected, found, facts = stranger
    torch.testing.assert_close(
        found[name]["logits"], expected[name]["logits"], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(found[name]["loss"], expected[name]["loss"])
    for cache in ("dynamic", "static", "none"):
        assert torch.equal(found[name][cache], expected[name]["tokens"]), cache
    assert torch.equal(found[name]["lookup"], expected[name]["tokens"][:1])
    assert not facts[name]["missing_keys"]
    assert not facts[name]["unexpected_keys"]
    assert not facts[name]["mismatched_keys"]
    dense = FAMILIES[name.split("-")[1]]()
    tied = dense.get_input_embeddings().weight is dense.get_output_embeddings().weight
    assert facts[name]["tied"] == tied
    assert facts[name]["warnings"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_checkpoint_can_be_saved_again(stranger, family):
    _, expected, found, facts = stranger
    again = found[f"mixed-{family}"]["again"]
    torch.testing.assert_close(again, expected[f"mixed-{family}"]["logits"], rtol=1e-4, atol=1e-5)
    assert facts[f"mixed-{family}"]["finite"]
    assert facts[f"mixed-{family}"]["own_class"].startswith("Pruned")


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_in_the_directory(stranger, name):
    directory = stranger[0] / name
    config = json.loads((directory / "config.json").read_text())
    files = {file.name for file in directory.iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= files
    assert not any(Path(file).suffix in (".bin", ".pt", ".pth", ".pkl") for file in files)
    readable = {oct((directory / file).stat().st_mode) for file in files}
    assert len(readable) == 1
    if name.startswith("mixed"):
        assert "modeling_pruned.py" in files
        assert config["pruned_blocks"][1]["query_heads"] == 0
        assert config["pruned_blocks"][2]["ffn"] == 0
    else:
        assert not any(file.endswith(".py") for file in files)
        assert not {"auto_map", "pruned_blocks", "per_layer_config"} & config.keys()
        assert config["model_type"] == PLAIN[name.removeprefix("plain-")][2]


def test_heads_that_gpt2_and_opt_cannot_say_need_the_code():
    for family in ("gpt2", "opt"):
        model = FAMILIES[family]()
        config = describe(shrink_(model, uniform(model, 6, 40)))
        assert config.auto_map["AutoModelForCausalLM"].startswith("modeling_pruned.Pruned")
    biased = llama(attention_bias=True)
    assert hasattr(describe(shrink_(biased, uniform(biased, 3, 40))), "auto_map")


def test_a_checkpoint_replaces_the_one_before_whole_or_not_at_all(tmp_path, monkeypatch):
    model = llama()
    path = tmp_path / "model"
    save(model, None, path, "first")
    (path / "stale").touch()
    save(model, None, path, "second")
    assert (path / "README.md").read_text() == "second"
    assert not (path / "stale").exists()
    monkeypatch.setattr(type(model), "save_pretrained", lambda *_, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(model, None, path, "third")
    assert (path / "README.md").read_text() == "second"


def test_saving_leaves_the_model_and_its_shapes_alone(tmp_path):
    model = llama()
    shrink_(model, mixed(model))
    before = sites(model)
    save(model, None, tmp_path / "model", "")
    assert sites(model) == before
    assert not model.config.is_heterogeneous
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert sites(loaded) == before


def test_the_tokenizer_travels_along(tmp_path):
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    save(llama(), tokenizer, tmp_path / "model", "")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode("b") == [2]


QUIET = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
model.generate(**tokenizer("w1 w2 w3", return_tensors="pt"), max_new_tokens=4, do_sample=False)
"""


@pytest.mark.job
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_loading_and_generating_say_nothing(family, tmp_path):
    """In a process of its own, with everything that transformers logs by default."""
    model = FAMILIES[family]()
    save(shrink_(model, mixed(model)), word_tokenizer(), tmp_path / "model", "")
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(tmp_path / "model")],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == ""


SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
SCALED |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}


@torch.no_grad()
@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 5e5}, SCALED])
def test_older_readers_find_the_rotary_positions(rope, tmp_path):
    """And transformers 5 reads the same from both, and writes it again."""
    model = llama(rope_parameters=rope)
    save(shrink_(model, uniform(model, 2, 40)), None, tmp_path / "model", "")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["rope_theta"] == 5e5
    assert config["torch_dtype"] == config["dtype"] == "float32"
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert config.get("rope_scaling") == (scaling if rope is SCALED else None)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert found.config.rope_parameters == rope
    assert torch.equal(found(input_ids=IDS).logits, model(input_ids=IDS).logits)
    found.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


@torch.no_grad()
@pytest.mark.parametrize("groups", [2, 3, None])
def test_scaled_positions_of_phi3_survive(groups, tmp_path):
    """As in phi4-mini. transformers refuses some for fewer heads, so the code goes along."""
    factors = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5} | factors
    lengths = {"original_max_position_embeddings": 8, "max_position_embeddings": 64}  # 11 are read
    model = random_model(Phi3Config(**GATED, **lengths, rope_parameters=rope))
    save(shrink_(model, uniform(model, groups, 40)), None, tmp_path / "model", "")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert ("auto_map" in config) == (groups == 2)
    assert config["rope_scaling"] == {"type": "longrope"} | factors  # of transformers 4
    assert config["partial_rotary_factor"] == 0.5
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    for length in (5, 11):
        ids = IDS[:, :length]
        assert torch.equal(found(input_ids=ids).logits, model(input_ids=ids).logits)
    assert torch.equal(load(tmp_path / "model", *HERE)(input_ids=IDS).logits, found(IDS).logits)


def test_older_readers_find_the_positions_of_each_kind_of_layer():
    config = FAMILIES["gemma3"]().config
    config.rope_parameters["full_attention"] |= {"rope_type": "linear", "factor": 8.0}
    assert older(config).items() >= {"rope_theta": 1e6, "rope_local_base_freq": 1e4}.items()
    assert older(config)["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    fields = older(FAMILIES["gpt_neox"]().config)
    assert fields.items() >= {"rotary_emb_base": 1e4, "rotary_pct": 0.5}.items()


ENCODER = """
import json, sys
from pathlib import Path

sys.modules["pruning"] = None
import torch
torch.set_num_threads(1)
from safetensors.torch import load_file, save_file
import transformers

root = Path(sys.argv[1])
ids = load_file(root / "ids.safetensors")["ids"]
for path in sorted(p for p in root.iterdir() if p.is_dir()):
    reader = "reader" in path.name
    head = "QuestionAnswering" if reader else "SequenceClassification"
    model, info = getattr(transformers, "AutoModelFor" + head).from_pretrained(
        path, output_loading_info=True, trust_remote_code=path.name.startswith("mixed")
    )
    assert not any(info.values()), (path.name, info)
    with torch.no_grad():
        out = model(input_ids=ids)
    logits = torch.stack([out.start_logits, out.end_logits]) if reader else out.logits
    save_file({"logits": logits}, root / (path.name + ".safetensors"))
"""


@pytest.mark.job
@torch.no_grad()
def test_a_stranger_gets_the_same_encoder(tmp_path):
    """Heads, channels, sub-blocks and ranks; and one FFN width for all, which needs no code."""
    from safetensors.torch import load_file, save_file

    root, expected = tmp_path / "checkpoints", {}
    for family, make in ENCODERS.items():
        for name in ("mixed", "mixed-ranks", "plain"):
            model = make()
            shrink_(model, uniform(model, None, 40) if name == "plain" else mixed(model))
            if name == "mixed-ranks":
                low_rank(model)
            save(model, None, root / f"{name}-{family}", "# card")
            assert (root / f"{name}-{family}" / "modeling_pruned.py").exists() == (name != "plain")
            expected[f"{name}-{family}"] = model(input_ids=IDS).logits
        model = shrink_(reader(family), mixed(reader(family)))
        save(model, None, root / f"mixed-reader-{family}", "# card")
        out = model(input_ids=IDS)
        places = torch.stack([out.start_logits, out.end_logits])
        expected[f"mixed-reader-{family}"] = places
    save_file({"ids": IDS}, root / "ids.safetensors")
    elsewhere(ENCODER, root)
    for name, logits in expected.items():
        found = load_file(root / f"{name}.safetensors")["logits"]
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_without_its_head_is_loaded_too(family, tmp_path):
    """vLLM builds this class, and puts a head of its own behind it."""
    model = FAMILIES[family]()
    save(shrink_(model, mixed(model)), None, tmp_path / "model", "")
    found = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert type(found).__name__ == f"Pruned{type(model.base_model).__name__}"
    expected = model.base_model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(found(input_ids=IDS).last_hidden_state, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_says_its_heads_in_words_of_transformers(family, tmp_path):
    model = FAMILIES[family]()
    a = architecture(model)
    size = head_size(blocks(model)[0], a)
    save(shrink_(model, mixed(model)), None, tmp_path / "model", "")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.is_heterogeneous
    assert config.num_attention_heads == 8  # the dense model's, without an error
    for block, layer in zip(config.pruned_blocks, config.per_layer_config, strict=True):
        assert layer.num_attention_heads == max(1, block["query_heads"])
        if a.kv_heads:
            assert layer.num_key_value_heads == max(1, block["kv_heads"])
        assert layer.head_dim == size
    again = describe(load(tmp_path / "model", torch.float32, torch.device("cpu")))
    assert not again.is_heterogeneous
    assert again.attribute_map == type(config).attribute_map
    assert again.pruned_blocks == config.pruned_blocks


def test_files_of_this_machine_have_no_bars(tmp_path, capfd, monkeypatch):
    """transformers draws one for weights that it reads, another for those that it writes."""
    monkeypatch.setattr(logging, "_tqdm_active", True)
    model = FAMILIES["llama"]()
    model.save_pretrained(tmp_path / "theirs")
    AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    theirs = capfd.readouterr().err
    assert "Writing" in theirs
    assert "Loading" in theirs
    save(model, word_tokenizer(), tmp_path / "ours", "")
    load(tmp_path / "ours", *HERE)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()
