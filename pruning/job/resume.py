"""A pruned model is kept while it is trained: a job that was killed goes on with that very one.

Pruned again it would be another: what is chosen depends on times that are measured anew.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pruning.experiment import Experiment
from pruning.job.closed_loop import ClosedLoopResult
from pruning.latency.timer import Timing
from pruning.models import checkpoint
from pruning.models.sites import Kind, Site
from pruning.recovery.recovery import NoRecovery
from pruning.system.files import write_text


def load_or_prune(
    experiment: Experiment,
    directory: Path,
    dense: PreTrainedModel,
    prune: Callable[[], ClosedLoopResult],
) -> ClosedLoopResult:
    """Return what an earlier start of this job pruned, or prune and keep it in `directory`.

    Without recovery nothing is kept.
    """
    if isinstance(experiment.recovery, NoRecovery):
        return prune()
    facts = directory / "met.json"  # written last
    if not facts.exists():
        write(prune(), directory, facts)
    said = json.loads(facts.read_text())
    allocation = {}
    for name, units in said["allocation"]:
        site = Site(**name | {"kind": Kind(name["kind"])})
        allocation[site] = torch.zeros(site.units, dtype=torch.bool)
        allocation[site][torch.tensor(units, dtype=torch.long)] = True
    attention = experiment.model.implementation
    model = checkpoint.load(directory / "model", dense.dtype, dense.device, attention)
    timings = Timing(said["dense"]), Timing(said["pruned"])
    speed = said["target"], said["predicted"], said["measured"]
    rest = tuple(said["rounds"]), tuple(said.get("updates", ()))  # none in older files
    return ClosedLoopResult(model, allocation, *speed, *timings, *rest)


def write(met: ClosedLoopResult, directory: Path, facts: Path) -> None:
    """Write a pruned model, its allocation and its timings."""
    checkpoint.save(met.pruned, None, directory / "model", "")
    content = {
        "allocation": [
            [asdict(site), keep.nonzero().flatten().tolist()]
            for site, keep in met.allocation.items()
        ],
        "target": met.target,
        "predicted": met.predicted,
        "measured": met.measured,
        "dense": met.dense_timing.values,
        "pruned": met.pruned_timing.values,
        "rounds": met.rounds,
        "updates": met.updates,
    }
    write_text(json.dumps(content) + "\n", facts)
