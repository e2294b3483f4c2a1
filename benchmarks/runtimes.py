"""How fast and how good are finished models in an engine? One JSON line.

    python benchmarks/runtimes.py --model JOB/model [--model ...] runtime=openvino [more overrides]

Every model is timed there in turns with the dense one, and its quality is what the engine answers.
So a model that was pruned for the engine stands beside those that were pruned for another.
"""

import argparse
import json
import sys
from pathlib import Path

from pruning.composition import compose
from pruning.latency.timer import speedup
from pruning.models.checkpoint import load
from pruning.models.source import fingerprint
from pruning.system.cache import Cache


def main() -> None:
    """Print a row per model on stderr, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, action="append", required=True)
    arguments, overrides = parser.parse_known_args()
    experiment = compose(overrides)
    cache, runtime = Cache(experiment.cache), experiment.runtime
    device = experiment.hardware.open()
    dense, tokenizer = experiment.model.load(cache, device, experiment.task)
    if (how := experiment.hardware.measurement(dense, runtime)) is None:
        parser.error("models are timed on hardware=local")
    suite, _ = experiment.suite.for_task(experiment.task).available(cache)
    rows = []
    for path in arguments.model:
        pruned = load(path, dense.dtype, device, experiment.model.implementation)
        slow, fast = how.compare(dense, pruned, confirm=True)
        measured, doubt = speedup(slow, fast)
        identity = f"{fingerprint(pruned)} {runtime.label}"
        answers = suite.evaluate(runtime.served(pruned), tokenizer, cache, identity)
        row = {
            "model": path.parent.name,
            "dense_ms": round(slow.p50, 2),
            "speedup": round(measured, 4),
            "stderr": round(doubt, 4),
            "quality": {k: round(v, 4) for k, v in answers.metrics.items()},
        }
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    line = {"benchmark": "runtimes", "runtime": runtime.label, "work": str(how.work), "rows": rows}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
