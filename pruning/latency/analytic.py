"""What a model does, counted: parameters, floating-point operations, bytes, kernels."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.latency.grid import Levels, Shape, heads, monotone, widths
from pruning.latency.table import LatencyTable
from pruning.models.sites import Kind, Site, architecture, blocks, sites, weight
from pruning.runtimes.workload import Phase, Workload

NORM = 6  # kernels of an RMSNorm in eager PyTorch: cast, square, mean, rsqrt, two products
ROTARY = 10  # kernels that rotate queries and keys
CACHE = 2  # kernels that append keys and values


@dataclass
class Count:
    """What a part of a model has and does in one call."""

    parameters: float = 0.0
    flop: float = 0.0  # a multiplication with its addition is two
    bytes: float = 0.0  # of weights, of activations in and out, of the KV cache
    kernels: float = 0.0


Cost = Callable[[Count], float]


def estimate(
    model: PreTrainedModel,
    of: list[Site],
    work: Workload,
    alignment: int,
    cost: Cost,
    unit: str,
    dtype: str,
) -> LatencyTable:
    """Return the table that a cost of counts gives; `of` are the sites of a block."""
    count = len(blocks(model))
    of_kind = {site.kind: site for site in sites(model)[:2]}
    parts: dict[str, Levels] = {}
    rest = 0.0
    for times, step in work.steps():
        counter = Counter(model, step, getattr(torch, dtype).itemsize)
        rest += times * cost(counter.rest())
        for site in of:
            if site.kind is Kind.LINEAR:
                shapes: list[Shape] = [*widths(site.units, alignment)[:-1]]
            elif site.kind is Kind.FFN:
                shapes = [*widths(site.units, alignment)]
            else:
                shapes = [*heads(site.groups, site.heads_per_group)]
            ms = parts.setdefault(site.part, dict.fromkeys(shapes, 0.0))
            for level in shapes:
                ms[level] += times * cost(counter.part(site, level))
        if of[0].kind is Kind.LINEAR:  # a block without its projections
            whole = [counter.part(site, _dense(site)) for site in of_kind.values()]
            inside = [counter.part(site, site.units) for site in of]
            rest += times * count * (sum(map(cost, whole)) - sum(map(cost, inside)))
    parts = {part: ms if of[0].kind is Kind.LINEAR else monotone(ms) for part, ms in parts.items()}
    rest = max(rest, 0.0)
    dense = rest + count * sum(next(iter(ms.values())) for ms in parts.values())
    setting = asdict(work) | {"dtype": dtype}
    return LatencyTable(
        parts, rest, count, 1.0, dense, basis="estimated", unit=unit, setting=setting
    )


def _dense(site: Site) -> Shape:
    return site.units if site.kind is Kind.FFN else (site.groups, site.heads_per_group)


class Counter:
    """Counts what the parts of a model do in one step of its work; not in generate."""

    def __init__(self, model: PreTrainedModel, work: Workload, size: int):
        self.model, self.work = model, work
        self.size = size  # bytes of a number
        one = work.phase is Phase.decode
        self.rows = work.batch * (1 if one else work.sequence)  # tokens that go through
        self.context = work.sequence + one  # tokens that each attends to
        window = getattr(model.config, "sliding_window", None)
        if window and one:
            self.context = min(self.context, window)
        self.block = blocks(model)[0]
        self.architecture = architecture(model)

    def part(self, site: Site, level: Shape) -> Count:
        """Count a part of a block at a level: what is gone does nothing."""
        if site.kind is Kind.LINEAR:
            assert isinstance(level, int)
            rows, columns = self._size(site.module)
            if level == site.units:
                return self._products((rows, columns))
            return self._products((level, columns), (rows, level))
        if level in (0, (0, 0)):
            return Count()
        if site.kind is Kind.FFN:
            assert isinstance(level, int)
            hidden, _ = self._size(self.architecture.ffn_output)
            inputs = len(self.architecture.ffn_inputs)
            found = self._products(*inputs * [(level, hidden)], (hidden, level))
            found.kernels += NORM + inputs + 1  # activation, product of gates, residual
            return found
        assert isinstance(level, tuple)
        groups, of_group = level
        hidden, _ = self._size(self.architecture.attention_output)
        queries, keys = groups * of_group * site.width, groups * site.width
        found = self._products((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
        found.flop += 4 * self.rows * self.context * queries  # scores, and their sums of values
        cached = self.work.batch * self.context * 2 * keys * self.size
        found.bytes += cached
        found.kernels += NORM + 2  # attention's own, residual
        if not self.architecture.encoder:
            found.kernels += ROTARY
        if self.work.phase is Phase.decode:
            found.bytes += 2 * cached  # a growing cache is copied
            found.kernels += CACHE
        return found

    def rest(self) -> Count:
        """Count what is beside the blocks: the embedding of the tokens read, the last norm, a head.

        The head gives the logits of the last tokens alone.
        """
        inside = sum(p.numel() for p in blocks(self.model).parameters())
        total = sum(p.numel() for p in self.model.parameters())
        found = Count(parameters=float(total - inside), kernels=NORM + 2)
        head = self.model.get_output_embeddings()
        if isinstance(head, nn.Linear):
            weights, rows = head.weight.numel(), self.work.batch
            found.flop = 2.0 * weights * rows
            found.bytes = float(self.size * (weights + rows * sum(head.weight.shape)))
        return found

    def _products(self, *sizes: tuple[int, int]) -> Count:
        """Count products of the tokens with matrices of these sizes."""
        weights = sum(rows * columns for rows, columns in sizes)
        through = sum(rows + columns for rows, columns in sizes)
        return Count(
            parameters=float(weights),
            flop=2.0 * weights * self.rows,
            bytes=float(self.size * (weights + through * self.rows)),
            kernels=float(len(sizes)),
        )

    def _size(self, path: str) -> tuple[int, int]:
        rows, columns = weight(self.block.get_submodule(path)).shape
        return rows, columns
