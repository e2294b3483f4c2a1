"""A checkpoint that was pruned is loaded as the model it is, by a class of ours."""

import json
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from pruning.composition import compose
from pruning.models import checkpoint
from pruning.models.checkpoint import save
from pruning.models.shrink import shrink_
from pruning.models.sites import sites
from pruning.models.source import Dtype, Model
from pruning.system.cache import Cache
from tests.helpers.allocations import mixed
from tests.helpers.families import ENCODERS, EVERY, ROUTING, llama, reader
from tests.helpers.older import make_older_
from tests.helpers.tiny import word_tokenizer

IDS = torch.randint(3, 128, (2, 11), generator=torch.Generator().manual_seed(3))
CPU = torch.device("cpu")


def pruned(family: str, path: Path):
    """Save a model whose blocks are unlike each other; return it."""
    model = EVERY[family]()
    shrink_(model, mixed(model))
    save(model, word_tokenizer(), path, "")
    return model


def loaded(path: Path, **options):
    source = Model(name="pruned", path=str(path), dtype=Dtype.float32)
    return source.load(Cache(path.parent / "cache"), CPU, **options)[0]


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_a_pruned_checkpoint_is_loaded_without_running_its_code(family, tmp_path):
    model = pruned(family, tmp_path / "model")
    found = loaded(tmp_path / "model")
    # what is mapped from a file may not lie where several experts are multiplied at once
    same = {"rtol": 1e-5, "atol": 1e-5} if family in ROUTING else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(found(input_ids=IDS).logits, model(input_ids=IDS).logits, **same)
    assert sites(found) == sites(model)
    assert type(found).__module__ == "pruning.models.modeling_pruned"


def test_other_code_is_not_run(tmp_path):
    pruned("llama", tmp_path / "model")
    code = tmp_path / "model" / "modeling_pruned.py"
    code.write_text(code.read_text() + "\nraise SystemExit('run')\n")
    with pytest.raises(ValueError, match=r"modeling_pruned.py.*is no version of this package's"):
        loaded(tmp_path / "model")


def test_every_version_of_the_code_is_known():
    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout

    path = Path(checkpoint.CODE).relative_to(Path.cwd())
    try:
        commits = git("log", "--format=%H", "--", str(path)).decode().split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no history here")
    sums = {sha256(git("show", f"{commit}:{path}")).hexdigest() for commit in commits}
    unknown = sums - {*checkpoint.FORMER, sha256(checkpoint.CODE.read_bytes()).hexdigest()}
    assert not unknown, "checkpoints have this code: add its sum to FORMER in models/checkpoint.py"


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_checkpoint_of_an_older_version_is_loaded(family, tmp_path, monkeypatch):
    """It said what differs between blocks in transformers' `per_layer_config`."""
    model = pruned(family, tmp_path / "model")
    now = json.loads((tmp_path / "model" / "config.json").read_text())
    make_older_(tmp_path / "model", monkeypatch)
    found = loaded(tmp_path / "model")
    assert torch.equal(found(input_ids=IDS).logits, model(input_ids=IDS).logits)
    save(found, None, tmp_path / "again", "")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == now


@pytest.mark.parametrize("family", ENCODERS)
def test_a_pruned_encoder_gets_the_head_of_a_task(family, tmp_path):
    model = reader(family)
    save(shrink_(model, mixed(model)), word_tokenizer(), tmp_path / "model", "")
    task = compose(["model=bert-base", "task=sst2", "task.max_length=64"]).task
    found = loaded(tmp_path / "model", task=task)
    assert type(found).__name__.endswith("ForSequenceClassification")
    assert found.config.num_labels == 2
    assert sites(found) == sites(model)


def test_the_shapes_of_a_pruned_checkpoint_are_known_without_its_weights(tmp_path):
    model = pruned("llama", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    source = Model(name="pruned", path=str(tmp_path / "model"), dtype=Dtype.float32)
    found = source.skeleton(Cache(tmp_path / "cache"), CPU)
    assert sites(found) == sites(model)
    assert sites(found) != sites(llama())
