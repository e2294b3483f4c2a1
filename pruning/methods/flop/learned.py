"""FLOP's plan: a model with gates, trained or found in the cache, and what its gates keep."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from pruning.calibration.moments import Moments
from pruning.latency.table import LatencyTable, Shapes
from pruning.methods.flop.constraint import Cost, counts
from pruning.methods.flop.embedding import Tokens, fold_
from pruning.methods.flop.gating import gated_, product, restored_
from pruning.methods.flop.recipe import Embedding, Recipe
from pruning.methods.flop.training import Goal, train
from pruning.methods.method import Plan, PruningContext
from pruning.methods.svd import SVD
from pruning.models.modeling_pruned import replace_
from pruning.models.shape import Shape, Width
from pruning.models.shrink import copy_sharing_weights, factor_
from pruning.models.sites import (
    Allocation,
    Kind,
    Site,
    blocks,
    chosen_linears,
    projection,
    set_weight_,
    weight,
)
from pruning.system.cache import digest, digest_tensors
from pruning.system.files import to_json
from pruning.tasks.training import own, save_parameters

LIMIT = 30.0  # shifts of log_alpha beyond which nothing changes


class LearnedPlan(Plan):
    """Ranks by the gates of a trained model, all shifted alike until a budget is met.

    A shift of 0 is FLOP's own rule: a projection keeps as many terms as E||z||_0 says.
    """

    def __init__(
        self,
        dense: PreTrainedModel,
        trained: PreTrainedModel,
        sites: list[Site],
        table: LatencyTable,
        sparsity: float | None,
        history: list[dict[str, float]],
    ):
        self.dense, self.trained, self.table, self.history = dense, trained, table, history
        self.gated = {site: product(trained, site) for site in sites}
        if sparsity is not None:
            self.fixed_shapes = self._largest(
                self._exact, lambda left: self._sparsity(left) >= sparsity
            )

    @classmethod
    def from_context(cls, method: Recipe, context: PruningContext) -> "LearnedPlan":
        """Factorise, insert gates and train; or find all that in the cache."""
        c, dense = context, context.dense.model
        sites = chosen_linears(dense, method.modules)
        sizes = {site: _size(dense, site) for site in sites}
        if method.sparsity is not None:  # parameters are what is to be saved
            c = replace(c, table=counts(sizes, c.table), speedup=1 / (1 - method.sparsity))
        with c.job.stopwatch("calibrate"):
            text = c.calibration.batches, c.calibration.options
            moments = Moments.collect(c.dense, *text, sites, c.job.cache)
        ranks, tokens = _start(method, c), None
        if method.embedding is not Embedding.none:
            assert method.sparsity is not None, "FLOP asks for it"
            tokens = Tokens.from_batches(c.calibration.batches, dense, method.ends())
            wide = {site: (tokens.hidden, size) for site, size in tokens.sizes.items()}
            c = replace(c, table=counts(sizes | wide, context.table))
            ranks |= {
                site: Width(_share(1 - method.sparsity, *dimensions))
                for site, dimensions in wide.items()
            }
        with c.job.stopwatch("train"):
            trained, history = _trained(method, c, ranks, moments, tokens)
        return cls(dense, trained, list(ranks), context.table, method.sparsity, history)

    def choose(self, budget: float) -> Shapes | None:
        """Keep as many terms as fit the budget, at ranks that the table offers."""
        return self._largest(
            self._offered, lambda left: self.table.total(left) <= budget * (1 + 1e-9)
        )

    @torch.no_grad()
    def build(self, shapes: Shapes) -> tuple[PreTrainedModel, Allocation]:
        """Fold the gates in: two projections, or one where the rank is full again."""
        pruned = copy_sharing_weights(self.trained)
        allocation = Allocation()
        for site, module in self.gated.items():
            rank = shapes[site].units
            allocation[site] = torch.arange(site.units) < rank
            if site.kind is Kind.EMBEDDING:
                continue
            if rank < site.units:
                factor_(pruned, site, *module.folded(rank), module.bias)
            else:
                A, B = module.folded()
                merged = deepcopy(projection(self.dense, site))
                set_weight_(merged, B @ A)
                if module.bias is not None:
                    merged.bias.copy_(module.bias)  # type: ignore[union-attr, operator]
                replace_(blocks(pruned)[site.block], site.module, merged)
        of_tokens = {site: shapes[site] for site in self.gated if site.kind is Kind.EMBEDDING}
        if of_tokens:
            fold_(pruned, self.dense, of_tokens)
        return pruned, allocation

    def _exact(self, shift: float) -> Shapes:
        """Return the ranks that the gates say; full where two factors hold more than one matrix."""
        shapes: Shapes = {}
        for site, module in self.gated.items():
            rank = max(1, round(float(module.gates.rank(shift))))
            rows, columns = len(module.B), module.A.shape[1]
            saves = rank * (rows + columns) < rows * columns
            shapes[site] = Width(rank) if saves else site.whole
        return shapes

    def _offered(self, shift: float) -> Shapes:
        """Return the offered ranks nearest those that the gates say; beyond the largest, dense."""
        shapes: Shapes = {}
        for site, module in self.gated.items():
            rank = float(module.gates.rank(shift))
            below = [r for r in self.table.levels(site)[1:] if r.units <= len(module.A)]
            ranked = below and rank <= below[0].units
            shapes[site] = _nearest(rank, below) if ranked else site.whole
        return shapes

    def _sparsity(self, shapes: Shapes) -> float:
        left = whole = 0
        for site, module in self.gated.items():
            rank, rows, columns = shapes[site].units, len(module.B), module.A.shape[1]
            whole += rows * columns
            left += rows * columns if rank == site.units else rank * (rows + columns)
        return 1 - left / whole

    @torch.no_grad()
    def _largest(
        self, shapes: Callable[[float], Shapes], fits: Callable[[Shapes], bool]
    ) -> Shapes | None:
        """Return the shapes of the largest shift whose shapes fit."""
        low, high = -LIMIT, LIMIT
        if not fits(shapes(low)):
            return None
        if fits(shapes(high)):
            return shapes(high)
        while high - low > 1e-4:
            middle = (low + high) / 2
            low, high = (middle, high) if fits(shapes(middle)) else (low, middle)
        return shapes(low)


def _size(model: PreTrainedModel, site: Site) -> tuple[int, int]:
    rows, columns = weight(projection(model, site)).shape
    return rows, columns


def _share(left: float, rows: int, columns: int) -> int:
    """Return the rank at which two factors have a share of the parameters of the whole."""
    return max(1, int(left * rows * columns / (rows + columns)))


def _start(method: Recipe, context: PruningContext) -> Shapes:
    """Return the ranks that `method=svd` would choose."""
    assert context.speedup is not None
    svd = SVD("svd", modules=method.modules, whiten=method.whiten)
    chosen = svd.plan(context).choose(context.table.budget(context.speedup))
    if chosen is None:
        raise ValueError(
            f"method.modules={method.modules!r} has no ranks to start from: none that "
            f"search={context.search.name} finds save as much as is asked for; ask for less"
        )
    return chosen


def _trained(
    method: Recipe, context: PruningContext, ranks: Shapes, moments: Moments, tokens: Tokens | None
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """Return the trained model with gates and the curves of its training, from the cache if there.

    While it trains, the Trainer's checkpoints are in `checkpoints/` of the cache.
    """
    c, dense, job, sites = context, context.dense.model, context.job, list(ranks)
    assert c.speedup is not None
    warmup = round(method.warmup * method.steps)
    goal = Goal(Cost.from_table(c.table, sites), 1 - 1 / c.speedup, warmup)
    options = c.calibration.options
    tokens_read = method.steps * method.batch_size * options.sequence_length
    batches = c.calibration.up_to(round(tokens_read / (1 - options.held_out)))
    parts = {
        name: {level.plain: cost for level, cost in levels.items()}
        for name, levels in c.table.parts.items()
    }
    key = {
        "version": 6,
        "start": [rank.plain for rank in ranks.values()],
        "moments": moments.identity,
        "batches": [batch.digest() for batch in batches],
        "tokens": None if tokens is None else digest_tensors([("counts", tokens.counts)]),
        "method": {k: v for k, v in asdict(method).items() if k not in ("name", "save_steps")},
        "target": goal.target,
        "table": digest(str((parts, c.table.rest, c.table.dense))),
        "device": dense.device.type,  # on CUDA passes are computed in bfloat16
        "seed": job.seed,
    }
    scratch = job.cache.checkpoints(key)

    def build(directory: Path) -> None:
        model = gated_(own(dense), moments, ranks, method, tokens)
        history = train(model, goal, method, batches, job.seed, scratch)
        save_parameters(model, directory)
        (directory / "history.json").write_text(to_json(history, indent=1))

    entry = job.cache.stage("training", key, build)
    shutil.rmtree(scratch, ignore_errors=True)
    model = own(dense)
    state = load_file(entry / "parameters.safetensors", device=str(model.device))
    restored_(model, sites, state, method, tokens)
    return own(model, dense.dtype).eval(), json.loads((entry / "history.json").read_text())


def _nearest(rank: float, offered: list[Shape]) -> Shape:
    return min(offered, key=lambda offer: abs(offer.units - rank))
