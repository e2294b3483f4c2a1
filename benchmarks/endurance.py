"""Does a job that was killed end as one that was left alone? One JSON line.

    python benchmarks/endurance.py [--kills 100] [--seed 0] [--kinds one-shot,slimgpt]

Jobs of every kind on tiny random models are killed by SIGKILL or SIGTERM, or their disk is filled,
at random moments; then the same command runs again. The disk is a tmpfs, which only root can mount:
else jobs are only killed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, nullcontext
from pathlib import Path
from random import Random

from tests.helpers.disturbed import KINDS, Reference, Undertaking
from tests.helpers.encoders import write_encoders
from tests.helpers.jobs import Jobs
from tests.helpers.place import Place
from tests.helpers.tmpfs import mountable, tmpfs

MOST = 4  # disturbances of a job before it is left alone


def main() -> None:
    """Print a line per fault on stderr, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    print(json.dumps(endurance(given.kills, given.seed, given.kinds.split(","))))


def endurance(kills: int, seed: int, kinds: list[str]) -> dict:
    """Kill jobs so often, one kind after the other; return what came of it."""
    draw, start, disk = Random(seed), time.perf_counter(), mountable()
    by, jobs_of, faults = Counter[str](), Counter[str](), dict[str, list[str]]()
    with tempfile.TemporaryDirectory() as scratch:
        mounted = tmpfs(Path(scratch) / "disk", "size=512m") if disk else nullcontext()
        with mounted:
            place = Place(Path(scratch) / "disk")
            write_encoders(place)
            with closing(Jobs(place.environment)) as jobs:
                references = {kind: Reference(kind, place, jobs) for kind in kinds}
                count = 0
                while count < kills:
                    kind = kinds[sum(jobs_of.values()) % len(kinds)]
                    jobs_of[kind] += 1
                    job = Undertaking(references[kind], jobs, str(sum(jobs_of.values())))
                    for _ in range(min(MOST, kills - count)):
                        how = draw.choice(["SIGKILL", "SIGTERM", "disk full"][: 3 if disk else 2])
                        moment = draw.uniform(0, references[kind].seconds)
                        if not job.disturb(how, moment):
                            break  # it had finished before
                        count += 1
                        by[how] += 1
                    job.finish()
                    for number, said in job.faults:
                        name = f"{kind} {count - job.kills + number}"
                        faults.setdefault(name, []).append(said)
                        print(f"{name}: {said}", file=sys.stderr, flush=True)
                    job.remove()
    return {
        "benchmark": "endurance",
        "kills": kills,
        "held": kills - len(faults),
        "seed": seed,
        "by": by,
        "jobs": jobs_of,
        "failed": [*faults],
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    main()
