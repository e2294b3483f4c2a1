"""A model as a runtime answers for it, to be evaluated like one of transformers."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

Answer = Callable[[Tensor, Tensor | None], dict[str, Tensor]]  # of tokens and mask: logits by name


class Served:
    """Has an engine answer calls; in all else it is the model that the engine runs."""

    def __init__(self, model: PreTrainedModel, answer: Answer):
        self.model, self.answer = model, answer

    @property
    def __class__(self) -> Any:
        return type(self.model)  # what is asked of its class is asked of the model's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> SimpleNamespace:
        """Return logits [batch tokens vocabulary] of a decoder's rows, each as long as the others.

        Of an encoder, what its head gives.
        """
        return SimpleNamespace(**self.answer(input_ids, attention_mask))
