"""What does recovery give back, by kind and by step? One JSON line.

    python launch.py study=recovery speedup=1.5 recovery=distill recovery.eval_steps=100  # ...
    python benchmarks/recovery_curve.py outputs/recovery

Reads the results of a study; every curve begins with the pruned model before its training.
"""

import argparse
import json
import sys
from pathlib import Path

from pruning.results.points import read_results
from pruning.results.report import is_metric
from pruning.results.result import Result


def row(result: Result) -> dict:
    """Return the curve of every metric, and what the training took."""
    took, evaluation = result.recovery, result.evaluation
    curves = {}
    for metric in filter(is_metric, evaluation.pruned):
        watched = {e["step"]: e[metric] for e in took["curve"] if metric in e}
        ends = {0: evaluation.one_shot[metric], took["steps"]: evaluation.pruned[metric]}
        curves[metric] = {
            "dense": evaluation.dense[metric],
            "steps": dict(sorted((ends | watched).items())),
        }
    costs = {k: v for k, v in took.items() if k not in ("kind", "curve")}
    speedup = {"target": result.speedup.target, "speedup": round(result.speedup.reached, 3)}
    return {"recovery": took["kind"], **speedup, **costs, "curves": curves}


def main() -> None:
    """Print a row per result on stderr, and all of them as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    rows = [row(result) for result in read_results(parser.parse_args().study) if result.recovery]
    for recovery_row in rows:
        print(json.dumps(recovery_row), file=sys.stderr)
    print(json.dumps({"benchmark": "recovery_curve", "rows": rows}))


if __name__ == "__main__":
    main()
