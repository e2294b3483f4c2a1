"""A model as a runtime answers for it, to be evaluated like one of transformers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.models.sites import architecture
from pruning.runtimes.graph import cached
from pruning.runtimes.session import Session


class Served:
    """Answers calls by a compiled graph; in all else it is the model that the graph is of."""

    def __init__(self, model: PreTrainedModel, session: Session):
        self.model, self.session = model, session

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> SimpleNamespace:
        """Return logits [batch tokens vocabulary] of a decoder's rows, each as long as the others.

        Of an encoder, what its head gives.
        """
        if architecture(self.model).encoder:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            given = {"input_ids": input_ids, "attention_mask": mask}
        else:
            batch, tokens = input_ids.shape
            given = {"input_ids": input_ids, "positions": torch.arange(tokens)}
            given |= cached(self.model, batch, 0)
        outputs = self.session({name: tensor.numpy() for name, tensor in given.items()})
        names = self.session.outputs
        return SimpleNamespace(
            **{
                name: torch.from_numpy(np.array(value))
                for name, value in zip(names, outputs, strict=True)
                if name.endswith("logits")
            }
        )
