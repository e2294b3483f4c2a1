"""How fast are finished models where the logits of all tokens are computed? One JSON line.

    python benchmarks/all_logits.py --model JOB/model [--model ...] [--batch 4] [--sequence 512]

As other tools time them, and as evaluation and training run them. A job counts the logits of a
prompt's last token only: with all of them the head, which is not pruned, is a larger share. Every
model runs in turns with the dense one, in PyTorch; its quality is that of the suite.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch

from pruning.composition import compose
from pruning.latency.timer import in_turns, speedup
from pruning.models.checkpoint import load
from pruning.models.source import fingerprint
from pruning.runtimes.calls import random_tokens
from pruning.system.cache import Cache


@torch.no_grad()
def main() -> None:
    """Print a row per model on stderr, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=512)
    arguments, overrides = parser.parse_known_args()
    experiment = compose(overrides)
    cache, device = Cache(experiment.cache), experiment.hardware.open()
    dense, tokenizer = experiment.model.load(cache, device, experiment.task)
    suite, _ = experiment.suite.for_task(experiment.task).available(cache)
    ids = random_tokens(dense, arguments.batch, arguments.sequence)
    rows = []
    for path in arguments.model:
        pruned = load(path, dense.dtype, device, experiment.model.implementation)
        calls = [partial(model, input_ids=ids, use_cache=False) for model in (dense, pruned)]
        slow, fast = in_turns((calls[0], calls[1]), device, 8, 0.01, path.parent.name)
        measured, doubt = speedup(slow, fast)
        row = {
            "model": path.parent.name,
            "dense_ms": round(slow.p50, 1),
            "speedup": round(measured, 4),
            "stderr": round(doubt, 4),
            "quality": suite.evaluate(pruned, tokenizer, cache, fingerprint(pruned)).metrics,
        }
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    work = f"{arguments.batch} x {arguments.sequence} tokens, logits of all"
    print(json.dumps({"benchmark": "all_logits", "work": work, "rows": rows}))


if __name__ == "__main__":
    main()
