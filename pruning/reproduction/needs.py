"""What it takes to make a table: estimates as a dry run has them, without the weights."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pruning.composition import compose
from pruning.experiment import Experiment
from pruning.latency.cost_models import Roofline
from pruning.recovery.recovery import Training
from pruning.reproduction.tables import Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIB = 2**30
H100 = 80  # GiB of its memory
REACHED = 0.4  # share of an H100's peak that passes are assumed to reach
STATES = 16  # bytes of a trained parameter: float32, its gradient, two of AdamW
SAVED = 12  # bytes of it in a checkpoint of a training, of which two are kept


@dataclass(frozen=True)
class Needs:
    """Estimates for all jobs of a table, one after the other."""

    disk: float  # GiB: weights, the largest checkpoint, moments in the cache
    memory: float  # GiB at the peak
    hours: float  # of passes on an H100


@cache
def needs(table: Table) -> Needs:
    """Estimate what the jobs of a table take, each as if nothing were cached."""
    jobs = [compose(table.words(row)) for row in table.jobs()]
    model = _skeleton(table.model, jobs[0])
    parameters = sum(p.numel() for p in model.parameters())
    tokens = sum(_tokens(job, model) for job in jobs)
    return Needs(
        max(_disk(job, model, parameters) for job in jobs) / GIB,
        max(_memory(job, model, parameters) for job in jobs) / GIB,
        2 * parameters * tokens / _rate() / 3600,
    )


@cache
def _rate() -> float:
    """Return the operations per second that an H100 is assumed to reach."""
    h100 = compose(["hardware=h100"]).hardware
    assert isinstance(h100, Roofline)
    return REACHED * h100.flops["bfloat16"]


def _skeleton(shape: dict[str, Any], job: Experiment) -> "PreTrainedModel":
    """Return a model of these shapes that has no weights, in the precision of a GPU."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**shape)
    head = "AutoModelForCausalLM" if job.task is None else job.task.head
    with torch.device("meta"):
        return getattr(transformers, head).from_config(config, dtype=torch.bfloat16)


def _tokens(job: Experiment, model: "PreTrainedModel") -> float:
    """Return how many tokens a job brings through the model, as far as a dry run counts them."""
    given = job.calibration.tokens
    stages = job.method.cost(model, given, job.calibration, job.search)
    trainings = 1 + (job.recovery.place(job.speedup) if isinstance(job.recovery, Training) else 0)
    recovery = job.recovery.cost(given).values()
    return sum(filter(None, stages.values())) + trainings * sum(filter(None, recovery))


def _memory(job: Experiment, model: "PreTrainedModel", parameters: int) -> float:
    """Return bytes: those of a dry run, or of a training beside the dense model."""
    from pruning.job.memory import memory

    training = 0
    if isinstance(job.recovery, Training):
        training = parameters * (2 + (STATES if job.recovery.lora is None else 4))
    return max(memory(model, job.calibration.tokens), training)


def _disk(job: Experiment, model: "PreTrainedModel", parameters: int) -> float:
    """Return bytes of the weights, a checkpoint, the moments, and what a training saves."""
    from pruning.calibration.moments import stored_bytes
    from pruning.models.sites import sites

    given = job.calibration.tokens
    kept = job.method.cost(model, given, job.calibration, job.search)
    moments = 0
    if "moments" in kept:
        moments = stored_bytes(sites(model), model.config.hidden_size, job.calibration.stored)
    trains = isinstance(job.recovery, Training) and job.recovery.lora is None
    return 2 * 2 * parameters + moments + (2 * SAVED * parameters if trains else 0)
