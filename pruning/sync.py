"""Upload the finished results of a study to W&B, from their files alone.

    python -m pruning.sync outputs/frontier [tracker.entity=me tracker.project=...]

Every result goes to the run of its id, also where it was uploaded before; then the frontier.
"""

import sys
from pathlib import Path

from pruning.experiment import compose
from pruning.results.points import results_of
from pruning.results.tracker import Service


def main(arguments: list[str]) -> int:
    """Upload a study; 1 where W&B did not take all of it."""
    if not arguments or "=" in arguments[0]:
        sys.exit("usage: python -m pruning.sync outputs/<study> [tracker.field=value ...]")
    study, overrides = Path(arguments[0]), arguments[1:]
    tracker = compose(["tracker=wandb", "tracker.mode=online", *overrides]).tracker
    assert tracker.name is Service.wandb
    results = results_of(study)
    if not results:
        sys.exit(f"error: {study} holds no result.json of a finished job; run some first")
    taken = [tracker.report(result, study / result.name) for result in results]
    taken.append(tracker.report_study(study))
    print(f"W&B took {sum(taken)} of {len(taken)} runs: {len(results)} results and the frontier")
    return 0 if all(taken) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
