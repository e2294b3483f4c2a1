"""What does a sweep over speedups cost, in jobs of one target? One JSON line.

    python benchmarks/sweep_cost.py [--speedups 1.25,1.5,2,3] [overrides of the command line]
    python benchmarks/sweep_cost.py --study outputs/frontier     # of results that are there

Runs the sweep with an empty cache, without evaluation. The job that paid for the stages that all
share is the single target; seconds are those of the results, loading and evaluation aside.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pruning.results.points import read_results
from pruning.results.result import Result

ASIDE = ("load", "finetune", "evaluate", "total", "solve")  # solve is part of prune
SHARED = ("calibrate", "profile", "levels")


def pruning(result: Result) -> float:
    """Return the seconds of all that pruning needs."""
    return sum(seconds for stage, seconds in result.seconds.items() if stage not in ASIDE)


def ran(speedups: str, overrides: list[str], out: Path) -> None:
    """Run the sweep on an empty cache."""
    command = [sys.executable, "launch.py", "-m", f"speedup={speedups}", "tracker=none"]
    fixed = ["suite=none", f"cache={out / 'cache'}", f"hydra.sweep.dir={out / 'results'}"]
    subprocess.run([*command, *fixed, *overrides], check=True, stdout=sys.stderr)


def main() -> None:
    """Print a row per job on stderr, and one JSON line per method and phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speedups", default="1.25,1.5,2,3")
    parser.add_argument("--study", type=Path)
    given, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.study is None:
            ran(given.speedups, overrides, Path(scratch))
        study = given.study or Path(scratch) / "results"
        results = read_results(study)
    kinds = {(r.config["method"]["name"], r.latency.phase, r.config["seed"]) for r in results}
    for method, phase, seed in sorted(kinds):
        jobs = [
            r
            for r in results
            if (r.config["method"]["name"], r.latency.phase, r.config["seed"])
            == (method, phase, seed)
        ]
        costs = {r.speedup.target: round(pruning(r), 1) for r in jobs}
        paid = max(jobs, key=lambda r: sum(r.seconds.get(stage, 0.0) for stage in SHARED))
        print(json.dumps(costs), file=sys.stderr)
        line = {
            "benchmark": "sweep_cost",
            "model": paid.config["model"]["name"],
            "method": method,
            "phase": phase,
            "targets": sorted(t for t in costs if t is not None),
            "single_s": round(pruning(paid), 1),
            "sweep_s": round(sum(map(pruning, jobs)), 1),
            "ratio": round(sum(map(pruning, jobs)) / pruning(paid), 3),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
