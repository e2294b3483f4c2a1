"""What a model does, counted: parameters, floating-point operations, bytes, kernels."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.latency.grid import Levels, monotone
from pruning.latency.shapes import by_part, levels, spent
from pruning.latency.table import LatencyTable
from pruning.models.modeling_pruned import ranks
from pruning.models.shape import Experts, Heads, Shape, Width
from pruning.models.sites import Kind, Site, architecture, blocks, sites, weight
from pruning.runtimes.workload import Phase, Workload

NORM = 6  # kernels of an RMSNorm in eager PyTorch: cast, square, mean, rsqrt, two products
ROTARY = 10  # kernels that rotate queries and keys
ROUTING = 16  # kernels of softmax, top-k, sorting tokens by expert, and two products of all
CACHE = 2  # kernels that append keys and values


@dataclass
class Count:
    """What a part of a model has and does in one call."""

    parameters: float = 0.0
    flop: float = 0.0  # a multiplication with its addition is two
    bytes: float = 0.0  # of weights, of activations in and out, of the KV cache
    kernels: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What a part costs by its counts, in a unit of its own."""

    by_count: Callable[[Count], float]
    unit: str

    def __call__(self, count: Count) -> float:
        """Return the cost of a count."""
        return self.by_count(count)


def estimate(
    model: PreTrainedModel,
    prunable: list[Site],
    work: Workload,
    alignment: int,
    cost: Cost,
    dtype: str,
) -> LatencyTable:
    """Return the table that a cost of counts gives; `prunable` are the sites of all blocks.

    ValueError where a block has products of two projections already.
    """
    if any(map(ranks, blocks(model))):
        raise ValueError(
            "hardware: what products of two projections take is not counted, only measured: give "
            "hardware=local, or a model without them"
        )
    linear = bool(prunable) and prunable[0].kind is Kind.LINEAR
    parts: dict[str, Levels] = {}
    rest = 0.0
    for times, step in work.steps():
        counter = Counter(model, step, getattr(torch, dtype).itemsize)
        rest += times * cost(counter.rest())
        for part, alike in by_part(prunable).items():
            shapes = [*levels(alike, alignment).items()]
            shapes = shapes[:-1] if linear else shapes
            ms = parts.setdefault(part, {level: 0.0 for level, _ in shapes})
            for level, site in shapes:
                ms[level] += times * cost(counter.part(site, level))
        if linear:  # blocks without their projections
            whole = (counter.part(site, site.whole) for site in sites(model))
            inside = (counter.part(site, site.whole) for site in prunable)
            rest += times * (sum(map(cost, whole)) - sum(map(cost, inside)))
    parts = parts if linear else {part: monotone(ms) for part, ms in parts.items()}
    rest = max(rest, 0.0)
    dense = rest + spent(parts, prunable)
    setting = asdict(work) | {"dtype": dtype}
    basis = "estimated" if cost.unit == "ms" else "counted"
    told = {"basis": basis, "unit": cost.unit, "setting": setting}
    return LatencyTable(parts, rest, len(blocks(model)), 1.0, dense, **told)


class Counter:
    """Counts what the parts of a model do in one step of its work; not in generate."""

    def __init__(self, model: PreTrainedModel, work: Workload, size: int):
        self.model, self.work = model, work
        self.size = size  # bytes of a number
        one = work.phase is Phase.decode
        self.rows = work.batch * (1 if one else work.sequence)  # tokens that go through
        self.context = work.sequence + one  # tokens that each attends to
        self.window = getattr(model.config, "sliding_window", None) if one else None
        self.architecture = architecture(model)

    def part(self, site: Site, level: Shape) -> Count:
        """Count a part of a block at a level: what is gone does nothing."""
        if site.kind is Kind.LINEAR:
            rows, columns = self._size(site, site.module)
            if level == site.whole:
                return self._products((rows, columns))
            return self._products((level.units, columns), (rows, level.units))
        if not level.units:
            return Count()
        match level:
            case Heads():
                return self._attention(site, level)
            case Experts():
                return self._experts(site, level)
            case Width():
                return self._ffn(site, level)

    def _ffn(self, site: Site, level: Width) -> Count:
        hidden, _ = self._size(site, self.architecture.ffn_output)
        paths = self.architecture.ffn_inputs
        rows = [self._size(site, path)[0] // site.units * level.units for path in paths]
        count = self._products(*((rows_of, hidden) for rows_of in rows), (hidden, level.units))
        count.kernels += NORM + sum(rows) // level.units + 1  # activation, gates, residual
        count.kernels += NORM * bool(self.architecture.ffn_output_norm)
        return count

    def _experts(self, site: Site, level: Experts) -> Count:
        """Count the experts that are read where tokens spread evenly, and each token's products."""
        hidden = self.model.config.hidden_size
        k, each = site.least, 3 * hidden * level.width  # gate, up and down
        read = level.experts * (1 - (1 - k / level.experts) ** self.rows)
        count = self._products((level.experts, hidden))  # of the router
        count.parameters += level.experts * each
        count.flop += 2.0 * self.rows * k * each
        through = self.rows * k * (3 * hidden + 3 * level.width)
        count.bytes += self.size * (read * each + through)
        count.kernels += NORM + ROUTING
        return count

    def _attention(self, site: Site, level: Heads) -> Count:
        hidden, _ = self._size(site, self.architecture.attention_output)
        queries, keys = level.units * site.width, level.groups * site.width
        count = self._products((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
        context = self._context(site.block)
        count.flop += 4 * self.rows * context * queries  # scores, and their sums of values
        count.flop += 2 * self._positions() * (hidden + self.rows) * queries
        cached = self.work.batch * context * 2 * keys * self.size
        count.bytes += cached
        count.kernels += NORM + 2  # attention's own, residual
        count.kernels += NORM * bool(self.architecture.attention_output_norm)
        if not self.architecture.encoder:
            count.kernels += ROTARY
        if self.work.phase is Phase.decode:
            count.bytes += 2 * cached  # a growing cache is copied
            count.kernels += CACHE
        return count

    def _positions(self) -> int:
        """Count the relative positions that DeBERTa projects and scores like tokens."""
        config = self.model.config
        if config.model_type != "deberta-v2" or not config.relative_attention:
            return 0
        sizes = (config.position_buckets, config.max_relative_positions)
        size = next((size for size in sizes if size > 0), config.max_position_embeddings)
        return 2 * size * len(config.pos_att_type or ())

    def _context(self, block: int) -> int:
        """Count the tokens that each attends to in a block, which may have a window."""
        types = getattr(self.model.config, "layer_types", None)
        sliding = types is None or types[block] == "sliding_attention"
        return min(self.context, self.window) if self.window and sliding else self.context

    def rest(self) -> Count:
        """Count what is beside the blocks: the embedding of the tokens read, the last norm, a head.

        The head gives the logits of the last tokens alone.
        """
        inside = sum(p.numel() for p in blocks(self.model).parameters())
        total = sum(p.numel() for p in self.model.parameters())
        count = Count(parameters=float(total - inside), kernels=NORM + 2)
        head = self.model.get_output_embeddings()
        if isinstance(head, nn.Linear):
            weights, rows = head.weight.numel(), self.work.batch
            count.flop = 2.0 * weights * rows
            count.bytes = float(self.size * (weights + rows * sum(head.weight.shape)))
        return count

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

    def _size(self, site: Site, path: str) -> tuple[int, int]:
        rows, columns = weight(blocks(self.model)[site.block].get_submodule(path)).shape
        return rows, columns
