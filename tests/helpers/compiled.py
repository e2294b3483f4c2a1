"""Compile levels of a block and a whole model of each family named; print how far off they are.

A line of JSON per phase, with the number of graphs. The graphs are those of torch.compile, run
without code generation. The model `low_rank` is a llama of which every projection is two.
"""

import json
import sys
from functools import partial

import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from pruning.models.modeling_pruned import factorise_
from pruning.models.shape import Experts, Heads, Width
from pruning.models.shrink import resized
from pruning.models.sites import architecture, blocks, linears
from pruning.runtimes.calls import end_to_end, of_block, plain
from pruning.runtimes.torch_compile import compiled as graph
from pruning.runtimes.workload import Phase, Workload
from tests.helpers.families import EVERY, ROUTING

LEVELS = 9  # more than the 8 that torch compiles one function for


def made(family: str) -> PreTrainedModel:
    if family != "low_rank":
        return EVERY[family]()
    model = EVERY["llama"]()
    for site in linears(model):
        factorise_(blocks(model)[site.block], site.module, 4)
    return model


def compiled(family: str, phase: Phase) -> dict:
    torch.compiler.reset()
    counters.clear()
    model, work = made(family), Workload(phase, 2, 9)
    off = 0.0
    if family != "low_rank":
        slow, fast = of_block(model, work), of_block(model, work, graph)
        for width in range(1, LEVELS + 1):
            block = resized(model, *of_width(family, model, width))
            call, expected = fast(block), slow(block)()
            for _ in range(2):
                off = max(off, float((call() - expected).abs().max()))
    one, other = (end_to_end(model, work, b)().logits for b in (plain, graph))
    off = max(off, float((one - other).abs().max()))
    graphs = counters["stats"]["unique_graphs"]
    return {"family": family, "phase": phase, "off": off, "graphs": graphs}


def of_width(family: str, model: PreTrainedModel, width: int) -> tuple[Heads, Width | Experts]:
    """Return shapes for a block that differ with `width`."""
    heads = Heads(2, 1) if family != "olmoe" else Heads(4, 2)  # those stay together
    if family not in ROUTING:
        return heads, Width(width)
    return heads, Experts(2 + width % 5, 8 * (1 + width % 3))


@torch.no_grad()
def main(families: list[str]) -> None:
    torch.compile = partial(torch.compile, backend="eager")
    for family in families:
        encoder = architecture(made(family)).encoder
        for phase in (Phase.encode,) if encoder else (Phase.prefill, Phase.decode):
            print(json.dumps(compiled(family, phase)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
