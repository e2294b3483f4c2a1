"""Checkpoints as versions of this package before wrote them."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from pruning.models import checkpoint

NAMES = {  # of query heads, KV heads and FFN width in the configs of a family
    "llama": ("num_attention_heads", "num_key_value_heads", "intermediate_size"),
    "gpt2": ("n_head", None, "n_inner"),
    "bert": ("num_attention_heads", None, "intermediate_size"),
}


def make_older_(directory: Path, patched: pytest.MonkeyPatch) -> None:
    """Have a checkpoint say what differs between its blocks in transformers' `per_layer_config`.

    That is what the first versions did. Its modelling file is another, of a known sum.
    """
    config = json.loads((directory / "config.json").read_text())
    names, blocks = NAMES[config["model_type"]], {}
    for index, left in enumerate(config.pop("pruned_blocks")):
        entry = dict(zip(names, (left[k] for k in ("query_heads", "kv_heads", "ffn")), strict=True))
        parts = {"attention": names[:2], "mlp": names[2:]}
        skip = [part for part, keys in parts.items() if entry[keys[0]] == 0]
        gone = {None, *(key for part in skip for key in parts[part])}
        blocks[str(index)] = {"skip": skip} | {k: v for k, v in entry.items() if k not in gone}
    config |= {"per_layer_config": blocks, "allow_global_per_layer_attribute_access": True}
    for newer in ("torch_dtype", "rope_theta", "rope_scaling", "attribute_map"):
        config.pop(newer, None)
    (directory / "config.json").write_text(json.dumps(config))
    former = directory / "modeling_pruned.py"
    former.write_text("# as it was")
    known = sha256(former.read_bytes()).hexdigest()
    patched.setattr(checkpoint, "FORMER", (*checkpoint.FORMER, known))
