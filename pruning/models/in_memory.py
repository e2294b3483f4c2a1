"""A model that a caller has loaded already, as the job's dense model."""

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from pruning.models.source import Attention, Dtype, Headed, Model, fingerprint
from pruning.system.cache import Cache

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class InMemory(Model):
    """A loaded model and its tokenizer; both stay as they are."""

    fingerprint: str = MISSING  # of the weights, which no path tells

    @classmethod
    def from_model(
        cls, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
    ) -> "InMemory":
        """Describe a model by where it came from and by its weights; ValueError where it cannot be
        pruned.
        """
        from pruning.models.sites import architecture

        architecture(model)  # an unsupported one is refused before anything is computed
        path = model.name_or_path or model.config.model_type
        known = model.config._attn_implementation in list(Attention)
        loaded = cls(
            name=path.rstrip("/").rpartition("/")[2].lower(),
            path=path,
            dtype=Dtype[str(model.dtype).removeprefix("torch.")],
            attention=Attention(model.config._attn_implementation if known else "auto"),
            fingerprint=fingerprint(model),
        )
        loaded.hold(model, tokenizer)
        return loaded

    def hold(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Keep the two beside the fields, which are what a result says of them."""
        self._model, self._tokenizer = model, tokenizer

    def check_path(self) -> None:
        """Say nothing: the place that it was loaded from may be gone."""

    def load(
        self, cache: Cache, device: "torch.device", task: Headed | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Return the model on `device`, in evaluation mode: a copy where it is not so already."""
        self._fits(self._model, task)
        model = self._model
        there = model.device.type == device.type and device.index in (None, model.device.index)
        if model.training or not there:
            import torch

            model = deepcopy(model)
            torch.nn.Module.to(model, device)  # the typed one
        return model.eval(), deepcopy(self._tokenizer)

    def skeleton(
        self, cache: Cache, device: "torch.device", task: Headed | None = None
    ) -> "PreTrainedModel":
        """Return the model itself."""
        return self.load(cache, device, task)[0]
