"""Compile nine levels of a block and a whole model; print what torch did, and how far off they are.

A line of JSON per phase. The graphs are those of torch.compile, run without code generation.
"""

import json
from dataclasses import replace
from functools import partial

import torch
from torch._dynamo.utils import counters

from pruning.latency.phases import end_to_end, of_block, resized
from pruning.latency.workload import Phase, Workload
from tests.families import EVERY

CASES = (("llama", "prefill"), ("llama", "decode"), ("bert", "encode"))


@torch.no_grad()
def main() -> None:
    torch.compile = partial(torch.compile, backend="eager")
    for family, phase in CASES:
        torch.compiler.reset()
        counters.clear()
        model = EVERY[family]()
        work = Workload(Phase(phase), 2, 9)
        plain, fast = of_block(model, work), of_block(model, replace(work, compile=True))
        off = 0.0
        for width in range(1, 10):
            block = resized(model, 2, 1, width)
            call, expected = fast(block), plain(block)()
            for _ in range(2):
                off = max(off, float((call() - expected).abs().max()))
        one, other = (end_to_end(model, replace(work, compile=c))().logits for c in (False, True))
        found = {
            "off": max(off, float((one - other).abs().max())),
            "graphs": counters["stats"]["unique_graphs"],
            "breaks": dict(counters["graph_break"]),
            "recompiles": dict(counters["recompiles"]),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
