"""How much memory a job takes at its peak, roughly."""

from transformers import PreTrainedModel

from pruning.experiment import Experiment
from pruning.methods.leveled import Leveled
from pruning.models.sites import blocks, sites
from pruning.models.streamed import is_streamed
from pruning.search.search import Guided
from pruning.system.memory import available

FLOATS = 2  # matrices of a site in float32 at once: its moment, and what it is of, packed
DOUBLES = 1  # and in float64, while units are ordered
LOGITS = 3  # numbers that a search keeps of every prediction and token


def memory(model: PreTrainedModel, tokens: int) -> int:
    """Return bytes: dense and pruned weights, the text in front of a block, its moments, twice."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    stream = tokens * model.config.hidden_size * 4
    first = [one for site in sites(model) if site.block == 0 for one in site.each]
    moments = sum(one.columns**2 * 4 for one in first)
    return 2 * (weights + moments) + stream


def of_blocks(experiment: Experiment, model: PreTrainedModel) -> int:
    """Return bytes that a streamed model takes beyond what is there once it is loaded.

    A block, dense and pruned; the text in front of it, and what folds read of the one before;
    moments and what solves them, or logits.
    """
    tokens, search = experiment.calibration.tokens, experiment.search
    numbers = max(sum(p.numel() for p in block.parameters()) for block in blocks(model))
    stream = tokens * model.config.hidden_size
    columns = max((site.columns for site in sites(model)), default=0)
    if isinstance(experiment.method, Leveled) and experiment.method.folds(model):
        stream += tokens * columns
    solver = (4 * FLOATS + 8 * DOUBLES) * columns**2
    solver += (4 + 8) * columns * model.config.hidden_size  # of the weights
    logits = 0
    if isinstance(search, Guided):
        compared = min(search.predictions or search.tokens, search.tokens)
        logits = 4 * LOGITS * compared * model.config.vocab_size
    return (2 * numbers + stream) * model.dtype.itemsize + max(solver, logits)


def check_memory(experiment: Experiment, model: PreTrainedModel) -> None:
    """Raise ValueError where a streamed model takes more memory than there is."""
    if not is_streamed(model):
        return
    need, there = of_blocks(experiment, model), available(model.device)
    if need > there:
        raise ValueError(
            f"model={experiment.model.name}: pruned one block at a time it takes about "
            f"{need / 1e9:.2f} GB of memory more than now, and {there / 1e9:.2f} GB are there: "
            "lower calibration.tokens or search.tokens, stop what else runs, or use a machine "
            "with more"
        )


def check_streamed(experiment: Experiment, model: PreTrainedModel) -> None:
    """Raise ValueError where what is asked for needs all weights of a streamed model at once."""
    if not is_streamed(model):
        return
    launcher = experiment.calibration.launcher
    if launcher is not None:
        raise ValueError(
            f"calibration.launcher={launcher!r} gives each process a whole model, and this one "
            "stays in its files: give null, or model.resident=true"
        )
    given = {
        "method": experiment.method,
        "runtime": experiment.runtime,
        "recovery": experiment.recovery,
    }
    for group, chosen in given.items():
        if not chosen.streams:
            why = "model.resident=false"
            if experiment.model.resident is None:
                there = available(model.device) / 1e9
                why = f"two models of this size do not fit into the {there:.2f} GB that are there"
            raise ValueError(
                f"{group}={chosen.name} needs all weights in memory, and {why}: leave out the "
                f"{group}, give model.resident=true, or use a machine with more memory"
            )
