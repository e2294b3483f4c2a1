"""Write a pruned model as an ordinary Hugging Face directory."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from pruning.models import modeling_pruned
from pruning.models.files import reading
from pruning.models.modeling_pruned import block_shape, head_size, ranks
from pruning.models.shards import write_shards
from pruning.models.sites import HEADS, architecture, blocks
from pruning.models.streamed import is_streamed
from pruning.models.weights import loaded
from pruning.system.cache import file_sha256
from pruning.system.files import whole_directory
from pruning.system.progress import without_bars

CODE = Path(modeling_pruned.__file__)
FORMER = (  # sha256 sums of what it was in checkpoints before
    "6d283f6be098d0c670357e4acca2432c7ced1dc9c2d25c6109e758102d29fdaa",
    "1f5987e0b9f6d7894ee61e80a820c761324ccf6b623273e1ac4dddb86f2b0e57",
    "72bcf9bae2fff435e672b114648fde34ab184fce84094fc0baefdaf8d4250353",
    "9689af86854226d8b27615224007a11b608eacf401a65983c92fc6c131d59be0",
    "b87ba2ac051b6c5a41d982e3122b9589d65df1255d4c13353adbc0e94a3e4241",
    "02057f26c943c57387e0502fe07ba96f13fc0b9fe1dad407897ab62318327701",
    "502195516f7016eab4848ef7c8b661f7fa0cd402253547c0ca36dcf2ef7e8e07",
    "3b4e996c4b04512432782f86452c1d687db1532f9986961c9eb030fed1cb16bf",
    "e6329176d68961692184884cfb06190dcbf7ba71ebe6f66d699bea7df5aee4ee",
    "361cc0f766299395490e49ffc5ee120b6eb95ce3a2490f113f860c809b019094",
    "534562d43e130b60ab5d79abda77aa2947f22011c467fb194ae5faef7e3f0f6d",
    "7b492fa74122273da22cf57921aa7e8156790acf8f8e6cb89e86f69af158de39",
    "a3bd64f80710bc2fa1bc627d4e932da215cbdb7027245bac6f903a122aefe81f",
    "744d4cd97fd9f7a4dfe0a4db1a06ba56d7f6a6cc88fcc7f758cb846d0f10e1bb",
    "88836b14a608feb3e232dfb312bc285d674d23f5bc1bac8ef19d972c6cf92d4e",
)
EMBEDDING, BLOCKS = "embedding_clusters", "pruned_blocks"  # keys in config.json
EXPERT_COUNTS = ("num_experts", "num_local_experts")
OURS = ("output_bias", "ranks", EMBEDDING)  # keys that no class of transformers knows


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, path: Path, card: str
) -> None:
    """Write weights, config, tokenizer and model card to `path`, whole or not at all.

    Where all blocks have one shape the checkpoint is plain; else it carries its modelling file
    and is loaded with `trust_remote_code=True`.
    """
    config = describe(model)
    with whole_directory(path) as partial:
        _write(model, config, tokenizer, partial, card)


def _write(
    model: PreTrainedModel,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: Path,
    card: str,
) -> None:
    """Write all files to an empty directory."""
    # experts one by one, as the hub has them, or stacked: what converts them leaves out the
    # classes of modelling files that have no head
    stacked = bool(architecture(model).experts and getattr(config, "auto_map", None))
    if is_streamed(model):
        write_shards(model, directory)
    else:
        own, model.config = model.config, deepcopy(model.config)
        try:
            # which notes in the config what it wrote
            with without_bars():
                model.save_pretrained(directory, save_original_format=not stacked)
        finally:
            model.config = own
    for file in directory.glob("*.py"):  # of a model that was itself loaded with remote code
        file.unlink()
    config.save_pretrained(directory)
    _add(directory / "config.json", older(config) | heads_by_layer(config))
    if getattr(config, "auto_map", None):
        shutil.copyfile(CODE, directory / CODE.name)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
        if type(tokenizer).__name__ == "TokenizersBackend":
            wanted = {"tokenizer_class": "PreTrainedTokenizerFast"}
            _add(directory / "tokenizer_config.json", wanted)
    (directory / "README.md").write_text(card, encoding="utf-8")
    mode = (directory / "README.md").stat().st_mode
    for file in directory.glob("*.safetensors"):  # written as 0600 whatever the umask
        file.chmod(mode)


def older(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what transformers 4 reads in the place of keys of transformers 5.

    Which reads these as well, and prefers its own.
    """
    fields: dict[str, Any] = {"torch_dtype": str(config.dtype).removeprefix("torch.")}
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if config.model_type == "modernbert":
        types: list[str] = config.layer_types  # type: ignore[attr-defined]
        again = (i for i, kind in enumerate(types) if i and kind == "full_attention")
        return fields | {
            "global_attn_every_n_layers": next(again, len(types)),
            "global_rope_theta": rope["full_attention"]["rope_theta"],
            "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        }
    if "full_attention" in rope:  # of gemma3
        fields["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    names = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
    if config.model_type == "gpt_neox":
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    fields |= {old: rope.pop(name) for name, old in names.items() if name in rope}
    if (kind := rope.get("rope_type", "default")) != "default":
        if config.model_type == "phi3":  # it wants these three
            rope = {"type": kind} | {key: rope[key] for key in ("short_factor", "long_factor")}
        fields["rope_scaling"] = rope
    return fields


def heads_by_layer(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what engines read of each layer's attention, where transformers has a key for it.

    The key holds names of ours, which stand for the family's own in one layer: whoever reads the
    family's own without a layer gets the dense model's, without a word from transformers.
    """
    a = modeling_pruned.ARCHITECTURES[config.model_type]
    if a.encoder or not hasattr(config, BLOCKS):
        return {}
    names = {"query_heads": a.heads, "kv_heads": a.kv_heads}
    names = {ours: name for ours, name in names.items() if name}
    layers = enumerate(getattr(config, BLOCKS))
    return {
        "head_dim": size_of_head(config),
        "attribute_map": type(config).attribute_map | names,
        "per_layer_config": {
            str(i): {name: left[name] or 1 for name in names} for i, left in layers
        },
    }


def size_of_head(config: PreTrainedConfig) -> int:
    """Return the columns of a head of the dense model."""
    sizes: Any = config
    return getattr(config, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads


def _homogeneous_(config: PreTrainedConfig) -> None:
    """Take out what `heads_by_layer` has put into a file."""
    config.per_layer_config = None
    for key in ("attribute_map", "allow_global_per_layer_attribute_access"):
        config.__dict__.pop(key, None)


def _add(file: Path, values: dict[str, Any]) -> None:
    """Add to a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(
    path: Path, dtype: torch.dtype, device: torch.device, attention: str | None = None
) -> PreTrainedModel:
    """Load a checkpoint that `save` wrote; this package's modelling file is run, not its own.

    ValueError where it is not there any more.
    """
    if not (path / "config.json").exists():
        raise ValueError(
            f"{path} is gone, and its job counts as done: remove {path.parent}, and it runs again"
        )
    with reading(path, str(path)):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    kind = pruned_class(str(path), config)
    if kind is None:
        kind = getattr(transformers, (config.architectures or [""])[0])
    options = {"config": config, "dtype": dtype, "attn_implementation": attention}
    model = loaded(kind, path, str(path), **options)
    return model.to(device).eval()  # type: ignore[arg-type]


def pruned_class(
    where: str, config: PreTrainedConfig, revision: str | None = None, auto: str | None = None
) -> type[PreTrainedModel] | None:
    """Return our own class for a checkpoint with a modelling file of ours; None for a plain one.

    `where` is a directory or a hub id; `auto` says which head is wanted, where not its own. Its
    modelling file is not run: it has to be a version of ours, which this class can stand for. What
    an older version called the blocks is called `pruned_blocks` in `config` then.

    ValueError for a file that is not known.
    """
    name, code = (config.architectures or [""])[0], getattr(config, "auto_map", None) or {}
    if CODE.stem not in {str(path).partition(".")[0] for path in code.values()}:
        return None
    file = cached_file(where, CODE.name, revision=revision)
    digest = file_sha256(Path(str(file)))
    if digest not in (file_sha256(CODE), *FORMER):
        raise ValueError(
            f"{CODE.name} in {where} (sha256 {digest[:16]}...) is no version of this package's "
            "own, and other code is not run: update this package, or prune the dense model"
        )
    if config.is_heterogeneous:
        if not hasattr(config, BLOCKS):
            _take_over_(config)
        _homogeneous_(config)
    head = next((head for head in HEADS if auto and auto.endswith(head)), None)
    if head is not None:
        name = next(name.removesuffix(suffix) for suffix in HEADS if name.endswith(suffix)) + head
    return getattr(modeling_pruned, name)


def _take_over_(config: PreTrainedConfig) -> None:
    """Rename what was kept of every block from what older checkpoints called it."""
    a = modeling_pruned.ARCHITECTURES[config.model_type]
    config.pruned_blocks = []
    for index in config.per_layer_config:
        heads = 0 if "attention" in index.skip else getattr(index, a.heads)
        groups = getattr(index, a.kv_heads) if a.kv_heads and heads else heads
        width = 0 if "mlp" in index.skip else getattr(index, a.intermediate)
        config.pruned_blocks.append({"query_heads": heads, "kv_heads": groups, "ffn": width})


def describe(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the config that rebuilds the model, read off its blocks."""
    a = architecture(model)
    config = deepcopy(model.config)
    config.dtype = str(model.dtype).removeprefix("torch.")
    for stale in ("auto_map", BLOCKS, "ranks", EMBEDDING):
        config.__dict__.pop(stale, None)
    _homogeneous_(config)
    shapes = [block_shape(block, a) for block in blocks(model)]
    if a.kv_heads:  # other families take it from the dense model's heads
        left = zip(blocks(model), shapes, strict=True)
        sizes = (head_size(block, a) for block, (groups, *_) in left if groups)
        config.head_dim = next(sizes, size_of_head(config))
    if getattr(config, a.intermediate) is None:  # gpt2's way to say four times the hidden size
        setattr(config, a.intermediate, 4 * config.hidden_size)
    dense = type(model).__name__.removeprefix("Pruned")
    low = {str(i): left for i, block in enumerate(blocks(model)) if (left := ranks(block))}
    if low:
        config.ranks = low
    if left := clusters(model):
        config.embedding_clusters = left
    if len(set(shapes)) == 1 and (plain := _plain(config, dense, shapes[0])) is not None:
        return plain
    config.architectures = [f"Pruned{dense}"]
    classes = {auto_class(dense): dense}
    if not a.encoder:  # what vLLM builds
        classes = {"AutoModel": type(model.base_model).__name__.removeprefix("Pruned"), **classes}
    config.auto_map = {auto: f"{CODE.stem}.Pruned{name}" for auto, name in classes.items()}
    config.pruned_blocks = [
        {"query_heads": groups * heads, "kv_heads": groups, "ffn": width}
        | ({"experts": experts} if experts else {})
        for groups, heads, width, experts in shapes
    ]
    return config


def clusters(model: PreTrainedModel) -> dict | None:
    """Return how the embedding is split into clusters, None where it is whole."""
    embedding: Any = model.get_input_embeddings()
    if not hasattr(embedding, "ranks"):
        return None
    tied = hasattr(model.get_output_embeddings(), "shared")
    return {"sizes": embedding.sizes, "ranks": embedding.ranks, "tied": tied}


def auto_class(name: str) -> str:
    """Name what of transformers loads a checkpoint of the model class `name`."""
    return next(
        (f"AutoModel{head}" for head in HEADS if name.endswith(head)), "AutoModelForCausalLM"
    )


def _plain(
    config: PreTrainedConfig, dense: str, blocks_of: tuple[int, int, int, int]
) -> PreTrainedConfig | None:
    """Return an ordinary config for blocks of one shape; None where the family has none."""
    groups, heads, width, experts = blocks_of
    a = modeling_pruned.ARCHITECTURES[config.model_type]
    kind = type(config)
    values = config.to_dict()
    if 0 in (groups, heads, width) or any(values.get(key) for key in OURS):
        return None
    values[a.expert_width if experts else a.intermediate] = width
    if experts:  # under two names, of which one stands for the other
        values |= {name: experts for name in EXPERT_COUNTS if name in values}
    if a.kv_heads is None:
        if groups != values[a.heads]:
            return None  # these families define the head size as hidden size over heads
    else:
        values |= {a.heads: groups * heads, a.kv_heads: groups}
        if config.model_type == "llama" and config.hidden_size % (groups * heads):
            # LlamaConfig refuses this; Mistral without a window is the same model without biases
            if config.attention_bias or config.mlp_bias:
                return None
            kind, dense = MistralConfig, "MistralForCausalLM"
            values["sliding_window"] = None
            for key in ("attention_bias", "mlp_bias", "pretraining_tp"):
                values.pop(key, None)
    values["architectures"] = [dense]
    values.pop("model_type", None)
    try:
        return kind(**values)
    except StrictDataclassError:  # gemma2 wants heads that divide the hidden size, for no reason
        return None
