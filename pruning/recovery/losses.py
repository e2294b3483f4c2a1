"""What a student is taught by: its teacher's predictions and hidden states.

L = a L_task + b L_logits + c L_hidden, as in ZipLM (arXiv:2302.04089, Section 3.3). Layers need no
mapping: a removed sub-block leaves the stream as it is, so that depths stay what they were.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pruning.models.blockwise import NEVER, few

Predictions = Float[Tensor, "predictions classes"]


def divergence(student: Predictions, teacher: Predictions, temperature: float) -> Float[Tensor, ""]:
    """Return T^2 mean KL(softmax(teacher / T) || softmax(student / T)), in nats.

    T^2 keeps the gradient's size whatever T (Hinton et al., arXiv:1503.02531). Of a regression, one
    number a row, it is the mean squared difference.
    """
    if student.shape[1] == 1:
        return (_precise(student) - _precise(teacher)).square().mean()
    return _Divergence.apply(student, teacher, temperature)  # type: ignore[return-value]


class _Divergence(torch.autograd.Function):
    """The divergence and its gradient T (q - p) / n together, a few predictions at a time.

    So no more than the gradient is kept, in the student's dtype: predictions of a large vocabulary
    are far more bytes than any other state.
    """

    @staticmethod
    def forward(ctx: Any, student: Predictions, teacher: Predictions, temperature: float) -> Tensor:
        gradient, total = torch.empty_like(student), _precise(student.new_zeros(()))
        for s, t, g in few(student, teacher, gradient):
            log_p, log_q = ((_precise(z) / temperature).log_softmax(-1) for z in (t, s))
            p, q = log_p.exp(), log_q.exp()
            total += (p * (log_p.clamp(min=NEVER) - log_q)).sum()
            g.copy_((q - p) * (temperature / len(student)))
        ctx.save_for_backward(gradient)
        return total * (temperature**2 / len(student))

    @staticmethod
    def backward(ctx: Any, *by_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * by_loss[0].to(gradient.dtype), None, None


def _precise(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are in it."""
    return values if values.dtype is torch.float64 else values.float()


def distance(
    student: Sequence[Float[Tensor, "batch sequence _"]],
    teacher: Sequence[Float[Tensor, "batch sequence _"]],
    mask: Int[Tensor, "batch sequence"],
    relative: bool,
) -> Float[Tensor, ""]:
    """Return the mean over blocks k and real tokens j of ||s_kj - t_kj||^2.

    The hidden states are transformers': a decoder's last ones are behind its final norm.

    `relative` divides each by ||t_kj||^2, so that neither depth nor the few tokens whose norm is a
    hundred times the others' decide alone. Published is the plain one.
    """
    real = mask.bool()
    total = torch.zeros((), device=mask.device)
    for s, t in zip(student, teacher, strict=True):
        s, t = s[real].float(), t[real].float()
        apart = (s - t).square().sum(-1)
        total = total + (apart / t.square().sum(-1).clamp(min=1e-12) if relative else apart).mean()
    return total / len(student)
