"""Local reconstruction: each pruned block learns what the dense block gives, one after the other.

Block i of the pruned model reads the pruned stream s and is fitted to the dense stream behind it,
D_i(h), so that errors do not add up with depth:

    min_theta  sum_t |B_i(s_t; theta) - y_t|^2 / |y_t|^2,   y = D_i(h)

Where sub-blocks behind it are gone, nothing reads the stream there: y is the dense stream behind
those, and the block takes them over. Training is by AdamW, on the calibration text. Some of its
batches are held out; of the epochs the one with the least error there is kept, and that may be none
(local reconstruction of pruned models: arXiv:2510.14444).
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.data.batch import Batch
from pruning.models.blockwise import advance, embed
from pruning.models.modeling_pruned import Architecture, block_shape
from pruning.models.sites import architecture, blocks
from pruning.models.streamed import opened
from pruning.recovery.recipe import LocalRecipe
from pruning.system.environment import resident
from pruning.system.files import whole_directory
from pruning.system.progress import track
from pruning.tasks.training import save_parameters

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Reconstruction:
    """Which model is fitted to which, on what."""

    student: PreTrainedModel
    teacher: PreTrainedModel  # the dense model
    batches: list[Batch]
    seed: int


def relative_error(
    outputs: Float[Tensor, "batch sequence hidden"],
    targets: Float[Tensor, "batch sequence hidden"],
    batch: Batch,
) -> Float[Tensor, ""]:
    """Return the mean over real tokens t of |y_t - x_t|^2 / |x_t|^2."""
    real = batch.mask.bool().to(outputs.device)
    y, x = outputs[real].float(), targets[real].float()
    return ((y - x).square().sum(-1) / x.square().sum(-1).clamp(min=1e-12)).mean()


class _Streams:
    """The hidden states of both models in front of a block, and the targets behind it."""

    def __init__(self, given: Reconstruction, in_bfloat16: bool):
        self.given = given
        with torch.no_grad():
            self.dense = [embed(given.teacher, batch, in_bfloat16) for batch in given.batches]
            self.pruned = [embed(given.student, batch, in_bfloat16) for batch in given.batches]
        self.targets: list[Tensor] = []  # of the block whose turn it is, by batch

    @torch.no_grad()
    def aim(self, index: int) -> None:
        """Take the dense states behind block `index`; let it aim at what is read next there."""
        teacher, a = self.given.teacher, architecture(self.given.teacher)
        advance(self.dense, index, blocks(teacher)[index])
        self.targets = [state.hidden for state in self.dense]
        for later, block in enumerate(blocks(self.given.student)[index + 1 :], index + 1):
            groups, _, width, experts = block_shape(block, a)
            if groups:
                break
            if width or experts:  # attention alone is gone
                if not getattr(block, "use_parallel_residual", False):
                    self.targets = self._read_by_ffn(later, a)
                break
            self.targets = self._behind(later)

    def _behind(self, index: int) -> list[Tensor]:
        """Return what a dense block makes of the targets."""
        with opened(blocks(self.given.teacher)[index]) as block:
            pairs = zip(self.dense, self.targets, strict=True)
            return [state.run(index, block, hidden) for state, hidden in pairs]

    def _read_by_ffn(self, index: int, a: Architecture) -> list[Tensor]:
        """Return the stream that the FFN of a dense block reads, or its norm, by the targets."""
        read = list[Tensor]()

        def note(module: nn.Module, args: Any, out: Tensor) -> None:
            read.append(out if a.post_norm else args[0])

        path = a.attention_norm if a.post_norm else a.ffn_norm
        hook = blocks(self.given.teacher)[index].get_submodule(path).register_forward_hook(note)
        left = self._behind(index)
        hook.remove()
        return [x.to(y.device).reshape(y.shape) for x, y in zip(read, left, strict=True)]

    def error(self, index: int, block: nn.Module, place: int) -> Float[Tensor, ""]:
        """Return the relative error of a pruned block on a batch, once the targets are there."""
        out = self.pruned[place].run(index, block)
        return relative_error(out, self.targets[place], self.dense[place].batch)


def reconstruct(
    recipe: LocalRecipe, given: Reconstruction, scratch: Path
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Fit the student's blocks in place; return each one's errors and what it cost.

    The student has parameters of its own. A block that is done is kept in `scratch`.
    """
    start, earlier = time.monotonic(), 0.0
    streams = _Streams(given, recipe.precision.is_bfloat16(given.student.device))
    curve: list[dict[str, float]] = []
    peaks = resident()
    for index, block in enumerate(track(blocks(given.student), "recover: blocks")):
        streams.aim(index)
        kept = scratch / f"{index:04d}"
        if kept.exists():
            _set(block, load_file(kept / "parameters.safetensors"))
            entry = json.loads((kept / "entry.json").read_text())
            earlier = entry["seconds"]
        else:
            entry = {"step": index, **_fit(recipe, streams, index, block, given.seed)}
            entry["seconds"] = round(earlier + time.monotonic() - start, 2)
            with whole_directory(kept) as made:
                save_parameters(block, made)
                (made / "entry.json").write_text(json.dumps(entry))
        peaks = tuple(max(a or 0, b or 0) or None for a, b in zip(peaks, resident(), strict=True))
        curve.append(entry)
        advance(streams.pruned, index, block)
    seconds = earlier + time.monotonic() - start
    tokens = recipe.epochs * sum(b.tokens for b in given.batches if not b.held_out)
    cost: dict[str, Any] = {
        "kind": recipe.name,
        "steps": recipe.epochs * sum(not b.held_out for b in given.batches),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(tokens / max(1e-9, seconds), 1),
        "peak_host_gib": peaks[0],
        "peak_device_gib": peaks[1],
    }
    return curve, cost


def _fit(
    recipe: LocalRecipe, streams: _Streams, index: int, block: nn.Module, seed: int
) -> dict[str, float]:
    """Train a block; return its held-out errors before and after, and the epoch that is kept."""
    parameters = [*block.parameters()]
    places = range(len(streams.pruned))
    held_out = [place for place in places if streams.pruned[place].batch.held_out]
    fit = [place for place in places if place not in held_out]

    @torch.no_grad()
    def judged() -> float:
        return sum(float(streams.error(index, block, p)) for p in held_out) / len(held_out)

    first = least = judged()
    best, kept = _copy(block), 0
    if not parameters:
        return {"before": first, "after": first, "epoch": 0}
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    steps = recipe.epochs * len(fit)
    warmup = max(1, round(recipe.warmup_ratio * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warmup, (steps - n) / max(1, steps - warmup + 1), 1.0)
    )
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(recipe.epochs):
        for turn in torch.randperm(len(fit), generator=generator).tolist():
            optimizer.zero_grad()
            streams.error(index, block, fit[turn]).backward()
            optimizer.step()
            schedule.step()
        if (now := judged()) < least:
            least, best, kept = now, _copy(block), epoch + 1
    _set(block, best)
    return {"before": first, "after": least, "epoch": kept}


def _copy(block: nn.Module) -> Parameters:
    return {name: p.detach().clone() for name, p in block.named_parameters()}


@torch.no_grad()
def _set(block: nn.Module, values: Parameters) -> None:
    for name, parameter in block.named_parameters():
        parameter.copy_(values[name])
