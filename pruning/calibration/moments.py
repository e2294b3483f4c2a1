"""Moments of what the output projections read, one block in memory at a time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from pruning.calibration.calibration import Calibration, Weight
from pruning.data.batch import Batch
from pruning.models.blockwise import State, behind, enter
from pruning.models.sites import Site, blocks, projection
from pruning.models.sites import weight as matrix
from pruning.system.cache import Cache
from pruning.system.progress import track

PANEL = 512
Outputs = dict[Site, list[Float[Tensor, "tokens rows"]]]  # of a block's sites, per state


@dataclass
class Moment:
    """Means over tokens of one site's inputs x, and of the outputs y that it should have."""

    H: Float[Tensor, "columns columns"]  # E[x x^T]
    mean: Float[Tensor, " columns"]  # E[x]
    target: Float[Tensor, "rows columns"] | None = None  # E[y x^T]; None: y = W x

    @property
    def covariance(self) -> Float[Tensor, "columns columns"]:
        """Return E[(x - E[x]) (x - E[x])^T]."""
        return self.H - self.mean[:, None] * self.mean

    def to(self, device: torch.device) -> "Moment":
        """Return the moment on a device."""
        target = None if self.target is None else self.target.to(device)
        return Moment(self.H.to(device), self.mean.to(device), target)

    def mixed(self, other: "Moment", share: float) -> "Moment":
        """Return the moment of both texts' tokens, of whose weight `share` is the other's."""

        def mix(a: Tensor, b: Tensor) -> Tensor:
            return a * (1 - share) + b * share

        both = self.target is not None and other.target is not None
        target = mix(self.target, other.target) if both else None  # type: ignore[arg-type]
        return Moment(mix(self.H, other.H), mix(self.mean, other.mean), target)


@dataclass
class Split:
    """Moments of the tokens to solve with, and of those held out to judge by."""

    fit: Moment
    held: Moment
    share: float  # held-out part of the total weight

    @property
    def all(self) -> Moment:
        """Return the moment of all tokens."""
        return self.fit.mixed(self.held, self.share)

    def to(self, device: torch.device) -> "Split":
        """Return both on a device."""
        return Split(self.fit.to(device), self.held.to(device), self.share)


class Accumulator:
    """The running sums of w x x^T and w x in float32; of x x^T only the upper panels."""

    def __init__(self, columns: int, device: torch.device):
        self.sum = torch.zeros(columns, columns, device=device)
        self.first = torch.zeros(columns, device=device)
        self.target: Tensor | None = None
        self.weight = 0.0

    def add_(
        self,
        X: Float[Tensor, "tokens columns"],
        w: Float[Tensor, " tokens"],
        Y: Float[Tensor, "tokens rows"] | None = None,
    ) -> None:
        """Add tokens X with weights w >= 0; a weight of 0 (padding) leaves a token out."""
        root = w.sqrt()
        X = X.float() * root[:, None]
        self.first.addmv_(X.T, root)
        for left in range(0, X.shape[1], PANEL):
            panel = slice(left, left + PANEL)
            self.sum[panel, left:].addmm_(X[:, panel].T, X[:, left:])
        if Y is not None:
            products = (Y.float() * root[:, None]).T @ X
            self.target = products if self.target is None else self.target.add_(products)
        self.weight += float(w.double().sum())

    def mean(self) -> Moment:
        """Return the weighted means."""
        upper = self.sum.triu()
        weight = max(self.weight, 1e-30)
        target = None if self.target is None else self.target / weight
        return Moment((upper + upper.triu(1).T) / weight, self.first / weight, target)


class _Seen(Exception):
    """All inputs that are asked for were there; what follows in the block is not needed."""


@contextmanager
def _inputs(model: PreTrainedModel, of: list[Site], stop: bool) -> Iterator[dict[Site, Tensor]]:
    """Note the last input of each site's projection; with `stop` leave the block by _Seen then."""
    seen: dict[Site, Tensor] = {}

    def note(site: Site):
        def hook(module, args) -> None:
            seen[site] = args[0]
            if stop and len(seen) == len(of):
                raise _Seen

        return hook

    handles = [projection(model, s).register_forward_pre_hook(note(s)) for s in of]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def collect(
    model: PreTrainedModel, batches: list[Batch], weight: Weight, of: list[Site]
) -> Iterator[dict[Site, Split]]:
    """Yield the moments of the sites of one block after the other.

    Beyond the model, memory holds the hidden states of every batch and one block's moments. With
    `weight` residual a token counts 1 / mean(h^2), h the residual stream behind the block: the
    next RMSNorm divides the token's error by that.
    """
    states = [enter(model, batch) for batch in batches]
    of_block: dict[int, list[Site]] = {}
    for site in of:
        of_block.setdefault(site.block, []).append(site)
    for index in track(range(len(blocks(model))), "calibrate: blocks"):
        yield block_moments(model, index, states, of_block.get(index, []), weight, advance=True)


@torch.no_grad()
def block_moments(
    model: PreTrainedModel,
    index: int,
    states: list[State],
    of: list[Site],
    weight: Weight,
    advance: bool,
    targets: Outputs | None = None,
) -> dict[Site, Split]:
    """Run block `index` on every state; return the moments of its sites `of`.

    With `advance` the states go on behind the block, else they stay in front of it: then the first
    call says how much each token weighs in this block, and further ones run only as much of it as
    they need. `targets` are what the sites should give for every state, where that is not what
    their own weights give.
    """
    block, device = blocks(model)[index], states[0].hidden.device
    reading = {site.reads: site for site in reversed(of)}  # one site for each kind of inputs
    sums = {
        site: [Accumulator(matrix(projection(model, site)).shape[1], device) for _ in range(2)]
        for site in reading.values()
    }
    known = not advance and all(state.weights is not None for state in states)
    with _inputs(model, list(sums), stop=known) as inputs:
        for number, state in enumerate(states):
            inputs.clear()
            if known:
                with suppress(_Seen):
                    behind(block, state.hidden, state.calls[index])
                w = state.weights
            else:
                hidden = (
                    state.advance(index, block)
                    if advance
                    else behind(block, state.hidden, state.calls[index])
                )
                w = _weights(state.batch, hidden, weight)
                if not advance:
                    state.weights = w
            assert w is not None
            for site, (fit, held) in sums.items():
                X = inputs[site].flatten(0, -2)
                Y = None if targets is None else targets[site][number]
                (held if state.batch.held_out else fit).add_(X, w.flatten(), Y)
    found = {
        site.reads: Split(fit.mean(), held.mean(), held.weight / (fit.weight + held.weight))
        for site, (fit, held) in sums.items()
    }
    return {site: found[site.reads] for site in of}


def _weights(
    batch: Batch, behind: Float[Tensor, "batch sequence hidden"], weight: Weight
) -> Float[Tensor, "batch sequence"]:
    """Say how much every token counts; padding not at all."""
    w = batch.mask.to(behind.device).float()
    if weight is Weight.residual:
        w = w / behind.float().square().mean(-1).clamp(min=1e-12)
    return w


@torch.no_grad()
def outputs(model: PreTrainedModel, index: int, states: list[State], of: list[Site]) -> Outputs:
    """Take every state behind block `index`; return what its sites gave, without their biases."""
    found: Outputs = {site: [] for site in of}

    def note(site: Site):
        def hook(module, args, out: Tensor) -> None:
            b = module.bias
            found[site].append((out if b is None else out - b).reshape(-1, out.shape[-1]))

        return hook

    handles = [projection(model, s).register_forward_hook(note(s)) for s in of]
    try:
        for state in states:
            state.advance(index, blocks(model)[index])
    finally:
        for handle in handles:
            handle.remove()
    return found


class Moments:
    """The moments of a model on disk, a file per block."""

    def __init__(self, directory: Path):
        self.directory = directory

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        identity: str,
        batches: list[Batch],
        calibration: Calibration,
        of: list[Site],
        cache: Cache,
    ) -> "Moments":
        """Collect the moments of the sites `of` of a model, or find them in the cache."""

        def build(directory: Path) -> None:
            found = cls(directory)
            for index, block in enumerate(collect(model, batches, calibration.weight, of)):
                found.write(index, block)

        key = {
            "version": 3,
            "model": identity,
            "batches": [batch.digest() for batch in batches],
            "weight": calibration.weight,
            "reads": sorted({site.reads for site in of}),
        }
        return cls(cache.stage("moments", key, build))

    @property
    def identity(self) -> str:
        """Return what names these moments in the cache."""
        return self.directory.name

    def write(self, index: int, block: dict[Site, Split]) -> None:
        """Write the moments of block `index`."""
        tensors = {
            f"{site.reads}.{part}.{name}": getattr(getattr(split, part), name).cpu()
            for site, split in block.items()
            for part in ("fit", "held")
            for name in ("H", "mean")
        }
        shares = {f"{site.reads}.share": str(split.share) for site, split in block.items()}
        save_file(tensors, self._file(index), metadata=shares)

    def __getitem__(self, site: Site) -> Split:
        """Read the moments of one site."""
        with safe_open(self._file(site.block), "pt") as file:
            fit, held = (
                Moment(*(file.get_tensor(f"{site.reads}.{part}.{name}") for name in ("H", "mean")))
                for part in ("fit", "held")
            )
            return Split(fit, held, float(file.metadata()[f"{site.reads}.share"]))

    def _file(self, index: int) -> Path:
        return self.directory / f"block-{index:03}.safetensors"
