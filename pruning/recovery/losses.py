"""What a student is taught by: its teacher's predictions and hidden states.

L = a L_task + b L_logits + c L_hidden, as in ZipLM (arXiv:2302.04089, Section 3.3). Layers need no
mapping: a removed sub-block leaves the stream as it is, so that depths stay what they were.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pruning.models.blockwise import NEVER

Predictions = Float[Tensor, "predictions classes"]


def divergence(student: Predictions, teacher: Predictions, temperature: float) -> Float[Tensor, ""]:
    """Return T^2 mean KL(softmax(teacher / T) || softmax(student / T)), in nats.

    T^2 keeps the gradient's size whatever T (Hinton et al., arXiv:1503.02531). Of a regression, one
    number a row, it is the mean squared difference.
    """
    if student.shape[1] == 1:
        return (student - teacher).square().mean()
    log_p = (teacher / temperature).log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p.clamp(min=NEVER)).sum(-1).mean()
    return (F.cross_entropy(student / temperature, p) - entropy) * temperature**2


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
