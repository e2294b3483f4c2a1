"""The result of one job, as `result.json`: a contract that tracker, report and reader rely on."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pruning.renamed import update_
from pruning.system.files import to_json, write_text

log = logging.getLogger(__name__)

SCHEMA = 1
Numbers = Mapping[str, float | None]  # by metric
Curve = list[dict[str, float]]  # by step
T = TypeVar("T")


@dataclass
class Speedup:
    """How much faster, end to end: dense time over pruned time."""

    target: float | None  # what was asked for; null: a ratio
    predicted: float | None  # by the latency table, in that round; null: shapes it does not hold
    measured: float | None  # median of dense over pruned time, pair by pair; null: not measured
    rounds: list[dict[str, Any]]  # of the closed loop; each with predicted, and measured if it was
    basis: str = "measured"  # or predicted, from parts measured elsewhere; estimated; counted

    @property
    def reached(self) -> float:
        """Return the speedup as it is known best."""
        speedup = self.predicted if self.measured is None else self.measured
        assert speedup is not None
        return speedup

    @property
    def stderr(self) -> float | None:
        """Return the standard error of what was measured, if it is known."""
        of_round = (r.get("stderr") for r in self.rounds if r.get("measured") == self.measured)
        return None if self.measured is None else next(of_round, None)

    def text(self) -> str:
        """Write it for people; whatever was not measured says so."""
        said = times(self.reached)
        return said if self.basis == "measured" else f"{said} ({self.basis})"


def times(speedup: float | None) -> str:
    """Write a speedup for people, `1.250x`."""
    return "none" if speedup is None else f"{speedup:.3f}x"


@dataclass
class Latency:
    """Percentiles of `n` timed calls, and all of them; n = 0: not measured but told by a table.

    The i-th calls of the dense and the pruned model were timed side by side.
    """

    p50_ms: float
    p90_ms: float
    n: int
    all_ms: list[float]


@dataclass
class Latencies:
    """The two models' latencies and the setting they were taken in."""

    dense: Latency
    pruned: Latency
    phase: str  # prefill, decode, generate or encode
    batch: int  # sequences
    sequence: int  # tokens per sequence; in decode, those in the KV cache
    tokens: int = 0  # generated behind each prompt
    unit: str = "ms"  # of the numbers of latency; of a proxy, parameters or flop
    runtime: str = "torch"  # that executed them

    def text(self) -> str:
        """Write the setting for people."""
        from pruning.runtimes.workload import Phase, Workload

        work = Workload(Phase(self.phase), self.batch, self.sequence, self.tokens)
        return str(work) if self.runtime == "torch" else f"{work}, {self.runtime}"


@dataclass
class Params:
    """Numbers of parameters, tied ones counted once."""

    dense: int
    pruned: int
    ratio: float  # pruned / dense


@dataclass
class Evaluation:
    """`"<suite>/<task>/<metric>"` -> number; null where it was not finite."""

    dense: Numbers
    pruned: Numbers
    # by part, the hash of what was asked, and what was wrong with its data
    read: dict[str, str] = field(default_factory=dict[str, str])
    not_run: dict[str, str] = field(default_factory=dict[str, str])
    one_shot: Numbers = field(default_factory=dict[str, float | None])  # pruned, before recovery
    # share of calibration rows, by part
    shared: dict[str, float] = field(default_factory=dict[str, float])
    # by metric of a text: how many `windows`, tokens `predicted` in them (and `bytes`), whether the
    # beginning-of-sequence token stands at the head of `every` window, of the `first`, or of `none`
    windows: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    # of `dense` and `pruned` as `latency.runtime` answers; nothing where that is PyTorch
    served: Mapping[str, Numbers] = field(default_factory=dict[str, Numbers])


@dataclass
class Memory:
    """Peaks over the whole job."""

    peak_host_gib: float  # resident set of the process
    peak_device_gib: float | None  # allocated by torch on CUDA; null without a device


@dataclass
class Block:
    """What was kept of one transformer block; zeros where a sub-block is gone."""

    block: int
    query_heads: int
    kv_heads: int
    ffn: int  # channels; of each expert
    # of the projections that are two now
    ranks: dict[str, int] = field(default_factory=dict[str, int])
    experts: int = 0


@dataclass
class Result:
    """Everything one job found out. Keys are added, never renamed, within a `schema`."""

    name: str  # run identity: readable, ends in a hash of the config
    study: str  # groups the runs of one frontier
    config: dict[str, Any]  # resolved, in full
    speedup: Speedup
    latency: Latencies
    params: Params
    evaluation: Evaluation
    seconds: dict[str, float]  # per stage; `solve` is part of `prune`, `total` the whole job
    memory: Memory
    allocation: list[Block]  # one entry per block, in order
    environment: dict[str, Any]  # of `environment()`
    # ranks, by projection
    break_even: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    # rank of each cluster of tokens
    embedding: dict[str, int] = field(default_factory=dict[str, int])
    # tokens of the dense model and of the pruned one, by script and `all`, where some were removed
    vocabulary: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    training: Curve = field(default_factory=list[dict[str, float]])  # of what was trained
    search: Curve = field(default_factory=list[dict[str, float]])  # losses of what it measured
    # solved behind pruned blocks: `site`, its `ridge` (null: no update), and the `share` of the
    # dense outputs in what its weights aim at
    updates: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    # training after pruning: cost, curve
    recovery: dict[str, Any] = field(default_factory=dict[str, Any])
    # that told a speed: setting, environment
    table: dict[str, Any] = field(default_factory=dict[str, Any])
    command: str = ""  # the command line of the job; empty in older results
    loader: str = "AutoModelForCausalLM"  # the class of transformers that loads the checkpoint
    schema: int = SCHEMA


def config_group(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a group of a resolved config, or of a group; empty where there is none."""
    return config.get(name) or {}


def write_samples(samples: Mapping[str, Sequence[dict[str, Any]]], out: Path) -> None:
    """Write what was asked and answered, a line of samples.jsonl per model and document, if any."""
    lines = [{"model": model, **sample} for model, kept in samples.items() for sample in kept]
    if lines:
        text = "".join(to_json(line, default=str) + "\n" for line in lines)
        write_text(text, out / "samples.jsonl")


def write(result: Result, path: Path) -> None:
    """Write `result.json` by one rename, on disk before it appears; NaN and infinity become null.

    A job is done if and only if this file exists and `read` accepts it.
    """
    write_text(to_json(asdict(result), indent=1) + "\n", path)


def read(path: Path) -> Result | None:
    """Return the result in `path`, or None where there is none, or it is cut short or not one."""
    try:
        data = json.loads(path.read_text())
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}, not {SCHEMA}")
        if data["latency"].pop("compile", False):  # of older results
            data["latency"]["runtime"] = "torch_compile"
        update_(data["config"])
        return parse(Result, data)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        log.warning("%s is not a result and is not taken for one: %r", path, error)
        return None


def finished(directory: Path) -> bool:
    """Say whether the job of this directory is done, evaluation included."""
    result = read(directory / "result.json")
    return result is not None and not result.evaluation.not_run


def parse(kind: type[T], data: dict[str, Any]) -> T:
    """Build a dataclass and those inside it; keys that it has no field for are left out."""
    assert is_dataclass(kind)
    values = {f.name: data[f.name] for f in fields(kind) if f.name in data}
    for f in fields(kind):
        if is_dataclass(f.type):
            values[f.name] = parse(f.type, values[f.name])  # type: ignore[arg-type]
        elif f.type == list[Block]:
            values[f.name] = [parse(Block, entry) for entry in values[f.name]]
    return kind(**values)
