"""Checkpoints under the last transformers 4, in an environment of its own."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.models.checkpoint import save
from pruning.models.shrink import shrink_
from tests.helpers.allocations import mixed, uniform
from tests.helpers.families import EVERY, ROUTING, random_model
from tests.helpers.tiny import word_tokenizer

VERSION = "4.57"
IDS = torch.randint(3, 128, (2, 11), generator=torch.Generator().manual_seed(3))

SCRIPT = """
import json, sys
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file, save_file

sys.modules["pruning"] = None
root = Path(sys.argv[1])
ids = load_file(root / "ids.safetensors")["ids"]
found = {"version": transformers.__version__}
for path in sorted(p for p in root.iterdir() if p.is_dir()):
    encoder = "id2label" in json.loads((path / "config.json").read_text())  # three classes
    head = "SequenceClassification" if encoder else "CausalLM"
    options = {"trust_remote_code": path.name.startswith("mixed")}
    if "gemma2" in path.name:  # its scores are capped there in eager attention alone
        options["attn_implementation"] = "eager"
    model, info = getattr(transformers, "AutoModelFor" + head).from_pretrained(
        path, output_loading_info=True, **options
    )
    assert not any(info.values()), (path.name, info)
    with torch.no_grad():
        save_file({"logits": model(input_ids=ids).logits}, root / (path.name + ".safetensors"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    found[path.name] = [str(model.dtype), tokenizer("w5")["input_ids"]]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> Path:
    """Make an environment with another transformers, and with the torch of this one."""
    place = tmp_path_factory.mktemp("older") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    wanted = [f"transformers=={VERSION}.*", "safetensors"]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")  # behind its own
    return python


@pytest.mark.slow
@torch.no_grad()
def test_an_older_transformers_gets_the_same_models(older, tmp_path):
    """Every family, plain and with the modelling file; another base of rotary positions.

    But for those with experts, which are not stacked there.
    """
    expected = {}
    for family in sorted(EVERY.keys() - ROUTING):
        make = EVERY[family]
        for name in ("plain", "mixed"):
            config = make().config
            if rope := getattr(config, "rope_parameters", None):
                rope.get("full_attention", rope)["rope_theta"] = 5e5
            model = random_model(config)
            shrink_(model, uniform(model, None, 40) if name == "plain" else mixed(model))
            save(model, word_tokenizer(), tmp_path / f"{name}-{family}", "")
            expected[f"{name}-{family}"] = model(input_ids=IDS).logits
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    done = subprocess.run(
        [older, "-c", SCRIPT, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts.pop("version").startswith(VERSION)
    for name, logits in expected.items():
        found = load_file(tmp_path / f"{name}.safetensors")["logits"]
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)
    assert all(fact == ["torch.float32", [8]] for fact in facts.values()), facts
