"""From what a job measured to its result."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from pruning.evaluation.part import Measured
from pruning.experiment import Experiment
from pruning.job.closed_loop import ClosedLoopResult
from pruning.latency.profile import break_even
from pruning.latency.table import LatencyTable
from pruning.methods.method import Plan
from pruning.models.checkpoint import auto_class
from pruning.models.loaded import LoadedModel
from pruning.models.modeling_pruned import block_shape, ranks
from pruning.models.shape import Experts, Heads, Width
from pruning.models.sites import Allocation, Kind, architecture, blocks, shape, sites
from pruning.results.result import (
    Block,
    Evaluation,
    Latencies,
    Latency,
    Memory,
    Params,
    Result,
    Speedup,
)
from pruning.system.environment import environment, peaks
from pruning.system.job import Job

if TYPE_CHECKING:
    from pruning.recovery.stage import Recovered


@dataclass(frozen=True)
class Quality:
    """What the suite says of the dense model, of the pruned one, and of that after recovery."""

    dense: Measured
    one_shot: Measured
    pruned: Measured  # the same where nothing was trained
    missing: dict[str, str]  # by part of the suite, what was wrong with its data
    shared: dict[str, float]  # by part, the share of calibration rows that hold evaluated text
    served: dict[str, dict[str, float]]  # of dense and pruned, as the runtime answers

    def evaluation(self) -> Evaluation:
        """Return it as results have it."""
        trained = self.pruned is not self.one_shot
        return Evaluation(
            dense=self.dense.metrics,
            pruned=self.pruned.metrics,
            read=self.pruned.read,
            not_run=self.missing,
            one_shot=self.one_shot.metrics if trained else {},
            shared=self.shared,
            windows=self.dense.windows,
            served=self.served,
        )


@dataclass(frozen=True)
class PruningOutcome:
    """What a job made and measured."""

    dense: LoadedModel
    made: ClosedLoopResult
    table: LatencyTable
    plan: Plan
    quality: Quality
    trained: "Recovered | None" = None


def compose(experiment: Experiment, outcome: PruningOutcome, job: Job, command: str) -> Result:
    """Gather what a job found out; the seconds are those until now."""
    whole, made, table = outcome.dense.reference, outcome.made, outcome.table
    dense = whole.model
    setting = table.setting
    basis = "measured"
    if made.measured is None:
        basis = table.predicts
    slow, fast = (
        Latency(t.p50, t.p90, len(t.values), t.values)
        if basis == "measured"
        else Latency(t.p50, t.p50, 0, [])
        for t in (made.dense_timing, made.pruned_timing)
    )
    latency = {key: setting[key] for key in ("phase", "batch", "sequence", "tokens")}
    latency["runtime"] = table.runtime
    before, left = (sum(p.numel() for p in model.parameters()) for model in (dense, made.pruned))
    return Result(
        name=job.out.name,
        study=experiment.study,
        config=json.loads(json.dumps(asdict(experiment))),  # enums become their values
        speedup=Speedup(made.target, made.predicted, made.measured, list(made.rounds), basis),
        latency=Latencies(slow, fast, unit=table.unit, **latency),
        params=Params(before, left, left / before),
        evaluation=outcome.quality.evaluation(),
        seconds=job.stopwatch.total(),
        memory=Memory(*peaks()),
        allocation=kept(dense, made.allocation),
        environment=environment(),
        break_even=break_even(dense, experiment.method.sites(dense), table),
        embedding=ranks_of_embedding(made.allocation),
        vocabulary=tokens(whole, outcome.dense),
        training=list(outcome.plan.history),
        search=list(outcome.plan.search_history),
        updates=list(made.updates),
        recovery=outcome.trained.facts() if outcome.trained else {},
        command=command,
        loader=auto_class(type(made.pruned).__name__),
        table={} if basis == "measured" else {"setting": setting, "environment": table.environment},
    )


def kept(dense: PreTrainedModel, allocation: Allocation) -> list[Block]:
    """Count what an allocation keeps of each block of the dense model."""
    kept_blocks = []
    for index, block in enumerate(blocks(dense)):
        # of what is no site too
        groups, heads, width, experts = block_shape(block, architecture(dense))
        kept_blocks.append(Block(index, groups * heads, groups, width, ranks(block), experts))
    for site, keep in allocation.items():
        if site.kind is Kind.LINEAR and not keep.all():
            kept_blocks[site.block].ranks[site.module] = int(keep.sum())
    for site in sites(dense):
        left = shape(site, allocation.get(site, torch.ones(site.units, dtype=torch.bool)))
        match left:
            case Width():
                kept_blocks[site.block].ffn = left.units
            case Experts():
                kept_blocks[site.block].ffn = left.width
                kept_blocks[site.block].experts = left.experts
            case Heads():
                kept_blocks[site.block].kv_heads = left.groups
                kept_blocks[site.block].query_heads = left.units
    return kept_blocks


def tokens(whole: LoadedModel, trimmed: LoadedModel) -> dict[str, list[int]]:
    """Count the tokens of both by script; nothing where they are the same."""
    if trimmed is whole:
        return {}
    from pruning.models.vocabulary import counted

    pair = [counted(loaded.tokenizer) for loaded in (whole, trimmed)]
    rows = [loaded.model.config.vocab_size for loaded in (whole, trimmed)]
    return {"all": rows} | {
        name: [each[name] for each in pair] for name, _ in pair[0].most_common()
    }


def ranks_of_embedding(allocation: Allocation) -> dict[str, int]:
    """Return how many terms every cluster of tokens keeps."""
    return {s.name: int(k.sum()) for s, k in allocation.items() if s.kind is Kind.EMBEDDING}
