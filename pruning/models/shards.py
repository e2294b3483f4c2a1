"""Write the weights of a streamed model, a file per block, and an index of them."""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from pruning.models.files import INDEX, WEIGHTS
from pruning.models.sites import architecture, blocks
from pruning.models.streamed import opened


def write_shards(model: PreTrainedModel, directory: Path) -> None:
    """Write weights, one block in memory at a time, and what generation wants to know."""
    prefix, count = f"{architecture(model).blocks}.", len(blocks(model))
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    rest = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(prefix) and name not in tied
    }
    stem, suffix = WEIGHTS[0].split(".")
    where: dict[str, str] = {}
    size = 0

    def write(number: int, tensors: dict[str, Tensor]) -> None:
        nonlocal size
        name = f"{stem}-{number:05}-of-{count + 1:05}.{suffix}"
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(tensors, directory / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    write(1, rest)
    for index, block in enumerate(blocks(model)):
        with opened(block):
            write(index + 2, block.state_dict(prefix=f"{prefix}{index}."))
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (directory / f"{WEIGHTS[0]}{INDEX}").write_text(json.dumps(index, indent=2) + "\n")
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
