"""What the tests of calibration, search and latency share: text, batches, tables, levels."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pruning.calibration.calibration import Calibration, CalibrationData, Target, Weight
from pruning.calibration.moments import Moments
from pruning.calibration.passes import collect
from pruning.data.batch import Batch
from pruning.latency.grid import Levels as Costs
from pruning.latency.grid import experts as expert_grid
from pruning.latency.grid import heads, widths
from pruning.latency.table import LatencyTable
from pruning.methods.method import PruningContext
from pruning.methods.plans import LevelsPlan
from pruning.methods.ziplm import Score, ZipLM
from pruning.models.loaded import LoadedModel
from pruning.models.sites import Kind, projection, sites, weight
from pruning.search.options import Chooser
from pruning.search.search import NoSearch, Search
from pruning.solver.levels import Levels
from pruning.system.cache import Cache
from pruning.system.job import Job
from pruning.system.precision import Precision
from pruning.system.stopwatch import Stopwatch

INF = float("inf")


def word_tokenizer(size: int = 125) -> PreTrainedTokenizerFast:
    """Make a tokenizer of the words w0, w1, ...; with the three special ones, size + 3 tokens."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "<unk>"])}
    vocabulary |= {f"w{i}": i + 3 for i in range(size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")


def job_with(cache: Cache) -> Job:
    """Return a job on the CPU that has this cache."""
    return Job(cache.root, torch.device("cpu"), cache, Stopwatch(), 0)


def padded_batches(count: int = 6, rows: int = 3, sequence: int = 12) -> list[Batch]:
    """Draw batches of which every row is padded on the right by another length; a third held out.

    No row is left with fewer than four tokens.
    """
    generator = torch.Generator().manual_seed(5)
    found = []
    for index in range(count):
        ids = torch.randint(3, 128, (rows, sequence), generator=generator)
        lengths = torch.randint(4, sequence + 1, (rows, 1), generator=generator)
        mask = (torch.arange(sequence) < lengths).long()
        found.append(Batch(ids * mask, mask, held_out=index % 3 == 2))
    return found


def linear_table(model: PreTrainedModel, alignment: int = 1, rest: float = 2.0) -> LatencyTable:
    """Make a table in which time is proportional to what is kept: 1 ms attention, 2 ms FFN."""
    attention, ffn = sites(model)[:2]
    of_attention = {
        left: 0.5 * left.groups / attention.groups + 0.5 * left.units / attention.units
        for left in heads(attention.groups, attention.heads_per_group)
    }
    left_of_ffn = (
        expert_grid(ffn.groups, ffn.heads_per_group, ffn.least, alignment)
        if ffn.kind is Kind.EXPERTS
        else widths(ffn.units, alignment)
    )
    of_ffn: Costs = {left: 2.0 * left.units / ffn.units for left in left_of_ffn}
    count = len(sites(model)) // 2
    parts: dict[str, Costs] = {"attention": of_attention, ffn.part: of_ffn}
    return LatencyTable(parts, rest, count, 1.0, rest + 3.0 * count)


def ziplm(score: Score, ridges: list[float]) -> ZipLM:
    """Make a method with one score for attention and FFN."""
    of = {"attention_score": score, "ffn_score": score, "ridges": ridges}
    return ZipLM("ziplm", damp=0.01, compensate=False, **of)


def text(target: Target = Target.local) -> Calibration:
    """Make a calibration of which only weight and target matter."""
    exact = Precision.float32
    return Calibration("tiny", weight=Weight.none, target=target, precision=exact)


def pruning_context(
    model: PreTrainedModel,
    batches: list[Batch],
    search: Search,
    job: Job,
    calibration: Calibration | None = None,
) -> PruningContext:
    """Return what a method is given, for 1.5x by a linear table."""
    given = CalibrationData(calibration or text(), batches, lambda tokens: batches)
    dense = LoadedModel(model, word_tokenizer())
    return PruningContext(dense, given, linear_table(model), search, 1.5, job)


def levels_plan(
    model: PreTrainedModel,
    levels: Levels,
    choose: Chooser,
    batches: list[Batch] | None = None,
    target: Target = Target.local,
    ridges: Sequence[float] = (INF,),
) -> LevelsPlan:
    """Make the plan of some levels."""
    search, job = NoSearch("none"), job_with(Cache("nowhere"))
    context = pruning_context(model, batches or [], search, job, text(target))
    return LevelsPlan(context, levels, choose, ridges)


def solve_levels(
    model: PreTrainedModel,
    batches: list[Batch],
    directory: Path,
    table: LatencyTable,
    ridges: tuple[float, ...] = (0.01, 0.1, INF),
) -> Levels:
    """Solve the levels of a model without a cache."""
    directory.mkdir(parents=True, exist_ok=True)
    moments = Moments(directory)
    for index, block in enumerate(collect(model, batches, Weight.none, sites(model))):
        moments.write(index, block)
    method = ziplm(Score.obs, list(ridges))
    of = {}
    for site in sites(model):
        W = weight(projection(model, site))
        of[site] = method.site_levels(site, W, moments.split(site, W.device), table.levels(site))
    return Levels(of, moments)
