"""Hardware that is not here: tables from files, rooflines, proxies."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from pruning.data.files import local
from pruning.latency.hardware import Hardware, Working
from pruning.runtimes.runtime import Runtime
from pruning.runtimes.torch_eager import EAGER
from pruning.system.cache import Cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.latency.op_counts import Count
    from pruning.latency.table import LatencyTable
    from pruning.models.sites import Site


@dataclass
class File(Hardware):
    """A table that `python -m pruning profile` wrote, here or on another machine."""

    name: str = "file"
    path: str = MISSING  # of a table; or a pattern, of tables that differ in the batch alone
    batch: int | None = None  # sequences at once, between those of the tables; null: the table's

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("batch", least=1)

    def profile(
        self, model: "PreTrainedModel", sites: "list[Site]", cache: Cache, runtime: Runtime = EAGER
    ) -> "LatencyTable":
        """Read the table, or interpolate tables; ValueError where none is of these shapes."""
        from pruning.latency.importers import at_batch, read

        paths = local(Path(self.path), "hardware.path") or [Path(self.path)]
        tables = [read(path, sites) for path in paths]
        for table in tables:
            check(table, sites, f"hardware.path={self.path!r}")
        table = at_batch(tables, self.batch, f"hardware.path={self.path!r}")
        return table.of_sites(sites, len({site.block for site in sites}))


def check(table: "LatencyTable", prunable: "list[Site]", where: str) -> None:
    """Raise ValueError where a table is not of these sites."""
    from pruning.latency.shapes import by_part

    for part, sites in by_part(prunable).items():
        known = [*table.parts.get(part, {})]
        if not known:
            raise ValueError(
                f"{where} has no times of {part}, only of {', '.join(table.parts)}: profile "
                "this model on that machine, or choose another file"
            )
        wholes = [site.whole for site in sites]
        largest = max(wholes, key=lambda shape: shape.sizes)
        missing = [largest] if known[0] != largest else [w for w in wholes if w not in known]
        if missing:
            raise ValueError(
                f"{where} has {part} of {known[0]}, and this model has {missing[0]}: profile this "
                "model on that machine, or choose another file"
            )


@dataclass
class Roofline(Working):
    """An estimate: the greater of the times for the arithmetic and for the memory, plus launches.

    Williams, Waterman, Patterson: Roofline, CACM 2009.
    """

    name: str = "roofline"
    flops: dict[str, float] = field(default_factory=dict)  # peak per second, by dtype
    bandwidth: float = MISSING  # of the memory, bytes per second
    launch: float = MISSING  # seconds per kernel: an assumption
    dtype: str | None = None  # of the weights there; null: as here
    source: str = MISSING  # where the numbers are from

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("flops", "bandwidth", above=0)
        self.check_range("launch", least=0)

    def profile(
        self, model: "PreTrainedModel", sites: "list[Site]", cache: Cache, runtime: Runtime = EAGER
    ) -> "LatencyTable":
        """Estimate every level; ValueError for a dtype without a peak."""
        from pruning.latency.op_counts import Cost, estimate

        dtype = self.dtype or str(model.dtype).removeprefix("torch.")
        if dtype not in self.flops:
            known = ", ".join(self.flops) or "none"
            raise ValueError(
                f"hardware.flops of {self.name} has no {dtype}, only {known}: give hardware.dtype, "
                f"or ++hardware.flops.{dtype}"
            )
        peak = self.flops[dtype]

        def ms(count: "Count") -> float:
            longest = max(count.flop / peak, count.bytes / self.bandwidth)
            return 1e3 * (longest + count.kernels * self.launch)

        work = self.workload(model)
        return estimate(model, sites, work, self.alignment, Cost(ms, "ms"), dtype)


class Counted(StrEnum):
    """What a proxy takes for time."""

    parameters = "parameters"
    flop = "flop"


@dataclass
class Proxy(Working):
    """No time at all: for ablations, parameters or floating-point operations in its place."""

    name: str = "proxy"
    counts: Counted = MISSING  # what is counted

    def profile(
        self, model: "PreTrainedModel", sites: "list[Site]", cache: Cache, runtime: Runtime = EAGER
    ) -> "LatencyTable":
        """Count every level."""
        from pruning.latency.op_counts import Cost, estimate

        name = str(self.counts)
        work, dtype = self.workload(model), str(model.dtype).removeprefix("torch.")

        def cost(count: "Count") -> float:
            return getattr(count, name)

        return estimate(model, sites, work, self.alignment, Cost(cost, name), dtype)
