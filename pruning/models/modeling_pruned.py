"""Transformers whose blocks differ in attention heads and FFN width.

This file travels inside pruned checkpoints and needs nothing but torch and transformers, 4.57 or
later. `pruned_blocks` in config.json is what is left of every block, in order, 0 where it is gone:
`[{"query_heads": 6, "kv_heads": 3, "ffn": 47}, ...]`; all else there is the dense model's. A block
with experts has their number beside the width of each, `{..., "ffn": 47, "experts": 6}`. With
`output_bias` the projections back to the residual stream have biases that the family has not.
`ranks` names the projections that are a product of two: `{block: {"self_attn.q_proj": 96}}`.
`embedding_clusters` says so of the embedding: `{"sizes": [tokens], "ranks": [...], "tied": true}`.
vLLM reads the heads of every block in `per_layer_config`, and builds the class without a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    Gemma2ForCausalLM,
    Gemma2Model,
    Gemma3ForCausalLM,
    Gemma3TextModel,
    GemmaForCausalLM,
    GemmaModel,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoXForCausalLM,
    GPTNeoXModel,
    GraniteForCausalLM,
    GraniteModel,
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    MixtralForCausalLM,
    MixtralModel,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    MPNetForQuestionAnswering,
    MPNetForSequenceClassification,
    OlmoeForCausalLM,
    OlmoeModel,
    OPTForCausalLM,
    OPTModel,
    Phi3ForCausalLM,
    Phi3Model,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3MoeForCausalLM,
    Qwen3MoeModel,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    SmolLM3ForCausalLM,
    SmolLM3Model,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Architecture:
    """Where a family keeps what can be cut: paths in the model, in a block, names in the config."""

    blocks: str = "model.layers"
    norm: str = "model.norm"  # of a decoder, in front of the head
    project_out: str | None = None  # between the final norm and the head
    attention: str = "self_attn"  # what knows the size of a head
    attention_norm: str = "input_layernorm"
    attention_output_norm: str | None = None  # of what it gives, in front of the addition
    attention_inputs: tuple[str, ...] = (  # one name: fused
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    )
    by_head: bool = False  # a fused projection has q, k and v of one head after the other
    attention_output: str = "self_attn.o_proj"
    ffn_norm: str = "post_attention_layernorm"
    ffn_output_norm: str | None = None
    ffn_inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")  # one name: fused, or no gate
    ffn_output: str = "mlp.down_proj"
    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"  # None: as many as query heads
    intermediate: str = "intermediate_size"
    head_size: str = "head_dim"  # attribute of the attention
    heads_in_config: bool = False  # the attention reads there how many it has
    heads_together: bool = False  # a norm reads all of them at once: none leaves by itself
    experts: str = ""  # their stacked weights; "": the family has none
    router: str = "mlp.gate"
    expert_width: str = "intermediate_size"
    position_bias: bool = False  # the attention gets one of all heads: see OwnBias
    encoder: bool = False  # no cache, logits of a task
    post_norm: bool = False  # norms behind the additions
    paired: bool = False  # a block gives its hidden states first of a pair, in transformers 5 too


EXPERT_MULTIPLE = 8  # channels of an expert, so that a row in two bytes a number is 16 or more


def _bert(
    blocks: str, inputs: tuple[str, ...] = ("query", "key", "value"), paired: bool = False
) -> Architecture:
    return Architecture(
        blocks=blocks,
        attention="attention.self",
        attention_norm="attention.output.LayerNorm",
        attention_inputs=tuple(f"attention.self.{name}" for name in inputs),
        attention_output="attention.output.dense",
        ffn_norm="output.LayerNorm",
        ffn_inputs=("intermediate.dense",),
        ffn_output="output.dense",
        kv_heads=None,
        head_size="attention_head_size",
        encoder=True,
        post_norm=True,
        paired=paired,
    )


_PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "granite")
_TWICE_NORMED = Architecture(
    attention_output_norm="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm",
    ffn_output_norm="post_feedforward_layernorm",
)

ARCHITECTURES = {
    **dict.fromkeys(_PLAIN, Architecture()),
    **dict.fromkeys(("gemma2", "gemma3_text"), _TWICE_NORMED),
    "qwen3_moe": Architecture(experts="mlp.experts", expert_width="moe_intermediate_size"),
    "mixtral": Architecture(experts="mlp.experts"),
    "olmoe": Architecture(experts="mlp.experts", heads_together=True),
    "phi3": Architecture(
        attention_inputs=("self_attn.qkv_proj",),
        ffn_inputs=("mlp.gate_up_proj",),
        heads_in_config=True,
    ),
    "gpt_neox": Architecture(
        blocks="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        attention="attention",
        attention_inputs=("attention.query_key_value",),
        by_head=True,
        attention_output="attention.dense",
        ffn_inputs=("mlp.dense_h_to_4h",),
        ffn_output="mlp.dense_4h_to_h",
        kv_heads=None,
        head_size="head_size",
    ),
    "gpt2": Architecture(
        blocks="transformer.h",
        norm="transformer.ln_f",
        attention="attn",
        attention_norm="ln_1",
        attention_inputs=("attn.c_attn",),
        attention_output="attn.c_proj",
        ffn_norm="ln_2",
        ffn_inputs=("mlp.c_fc",),
        ffn_output="mlp.c_proj",
        heads="n_head",
        kv_heads=None,
        intermediate="n_inner",
    ),
    "opt": Architecture(
        blocks="model.decoder.layers",
        norm="model.decoder.final_layer_norm",
        project_out="model.decoder.project_out",
        attention_norm="self_attn_layer_norm",
        attention_output="self_attn.out_proj",
        ffn_norm="final_layer_norm",
        ffn_inputs=("fc1",),
        ffn_output="fc2",
        kv_heads=None,
        intermediate="ffn_dim",
    ),
    "bert": _bert("bert.encoder.layer"),
    "roberta": _bert("roberta.encoder.layer"),
    "electra": _bert("electra.encoder.layer"),
    "deberta-v2": _bert(
        "deberta.encoder.layer", ("query_proj", "key_proj", "value_proj"), paired=True
    ),
    "mpnet": Architecture(
        blocks="mpnet.encoder.layer",
        attention="attention.attn",
        attention_norm="attention.LayerNorm",
        attention_inputs=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attention_output="attention.attn.o",
        ffn_norm="output.LayerNorm",
        ffn_inputs=("intermediate.dense",),
        ffn_output="output.dense",
        kv_heads=None,
        head_size="attention_head_size",
        position_bias=True,
        encoder=True,
        post_norm=True,
        paired=True,
    ),
    "modernbert": Architecture(
        norm="model.final_norm",
        attention="attn",
        attention_norm="attn_norm",
        attention_inputs=("attn.Wqkv",),
        attention_output="attn.Wo",
        ffn_norm="mlp_norm",
        ffn_inputs=("mlp.Wi",),
        ffn_output="mlp.Wo",
        kv_heads=None,
        encoder=True,
    ),
    "distilbert": Architecture(
        blocks="distilbert.transformer.layer",
        attention="attention",
        attention_norm="sa_layer_norm",
        attention_inputs=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_output="attention.out_lin",
        ffn_norm="output_layer_norm",
        ffn_inputs=("ffn.lin1",),
        ffn_output="ffn.lin2",
        heads="n_heads",
        kv_heads=None,
        intermediate="hidden_dim",
        head_size="attention_head_size",
        encoder=True,
        post_norm=True,
    ),
}


class LowRank(nn.Module):
    """Stand in for a projection of rank `rank`: out = B A x + bias."""

    def __init__(self, columns: int, rank: int, rows: int, bias: bool = False):
        super().__init__()
        self.A = nn.Linear(columns, rank, bias=False)
        self.B = nn.Linear(rank, rows, bias=bias)

    @property
    def bias(self) -> nn.Parameter | None:
        return self.B.bias

    @property
    def rank(self) -> int:
        return self.A.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.B(self.A(inputs))


def look_up(
    place: torch.Tensor, sizes: list[int], clusters: list[Callable[[torch.Tensor], torch.Tensor]]
) -> torch.Tensor:
    """Return the row at each place among all clusters; each cluster knows its own from 0 on."""
    embedded = torch.zeros((), device=place.device)
    for size, cluster in zip(sizes, clusters, strict=True):
        rows = cluster(place.clamp(0, size - 1))
        embedded = torch.where(place[..., None] < 0, embedded.to(rows), rows)
        place = place - size
    return embedded


class ClusteredEmbedding(nn.Module):
    """Stand in for an embedding: tokens in clusters, each with codes and a basis of its own rank.

    `position` is a token's place among all clusters one behind the other. A cluster of full rank
    has no basis.
    """

    position: torch.Tensor

    def __init__(self, sizes: list[int], ranks: list[int], hidden: int, scale: float = 1.0):
        super().__init__()
        self.sizes, self.ranks, self.scale = sizes, ranks, scale
        self.register_buffer("position", torch.arange(sum(sizes)))
        self.codes = nn.ModuleList(nn.Embedding(*shape) for shape in zip(sizes, ranks, strict=True))
        self.bases = nn.ModuleList(
            nn.Linear(rank, hidden, bias=False) if rank < hidden else nn.Identity()
            for rank in ranks
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        parts: Any = zip(self.codes, self.bases, strict=True)
        look_ups = [lambda place, c=codes, b=basis: b(c(place)) for codes, basis in parts]
        embedded = look_up(self.position[ids], self.sizes, look_ups)
        return embedded * torch.tensor(self.scale).to(embedded)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the products with the embeddings of all tokens: what a tied head does."""
        logits = []
        pairs: Any = zip(self.codes, self.bases, strict=True)
        for codes, basis in pairs:
            within = hidden if isinstance(basis, nn.Identity) else hidden @ basis.weight
            logits.append(nn.functional.linear(within, codes.weight))
        return torch.cat(logits, -1).index_select(-1, self.position)


class ClusteredHead(nn.Module):
    """A head without parameters: it shares those of the embedding."""

    def __init__(self, embedding: Any):
        super().__init__()
        self.shared = [embedding]  # anything with `logits`; in a list, so that it is no submodule

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.shared[0].logits(hidden)


class Zero(nn.Module):
    """Stand in for what was removed: the residual stream plus a 0-dim zero is itself."""

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return hidden_states.new_zeros(())


class ZeroAttention(Zero):
    """Stand in for a removed attention, which also returns its weights.

    A cache counts the tokens in each layer that has a window, so there those of no heads go in.
    vLLM finds the attention of a layer by its config, its index and a call in its source.
    """

    heads = 0

    def __init__(self, config: Any, layer_idx: int | None = None):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        types: dict[int | None, str] = dict(enumerate(getattr(config, "layer_types", None) or ()))
        self.is_sliding = types.get(layer_idx) == "sliding_attention"  # gemma3 in transformers 4

    def forward(
        self, hidden_states: Any = None, *args, past_key_values: Any = None, **kwargs
    ) -> tuple[torch.Tensor, None]:
        if self.heads:
            attend: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
            return attend(self, hidden_states, hidden_states, hidden_states, None)
        if hidden_states is None:
            hidden_states = kwargs["query"]  # of distilbert in transformers 4
        layers = getattr(past_key_values, "layers", ())
        if self.layer_idx is not None and self.layer_idx < len(layers):
            layer = layers[self.layer_idx]
            if layer.is_sliding and not layer.is_compileable:  # not of a fixed size
                batch, tokens, _ = hidden_states.shape
                none = hidden_states.new_empty(batch, 0, tokens, 1)
                past_key_values.update(none, none, self.layer_idx)
        return hidden_states.new_zeros(()), None


class OwnBias(MPNetSelfAttention):
    """Attention of fewer heads than the bias of positions has, which all blocks share.

    `own_heads` are the places of its heads among those of the dense model.
    """

    own_heads: torch.Tensor

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        *others, bias = args  # of [batch heads queries keys], alike in all rows
        own = bias[:1].index_select(1, self.own_heads)
        attend: Any = super().forward
        return attend(hidden_states, *others, own, **kwargs)


class OwnHeads:
    """A model's config, as an attention reads it that has its own number of heads."""

    def __init__(self, config: Any, **heads: int):
        self.config = config
        self.__dict__.update(heads)

    def __getattr__(self, name: str) -> Any:
        if "config" not in self.__dict__:  # while it is copied
            raise AttributeError(name)
        return getattr(self.config, name)


def find(block: nn.Module, path: str) -> Any:
    """Return the module at a path in a block, None where there is none."""
    module: Any = block
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def replace_(block: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path in a block."""
    parent, _, name = path.rpartition(".")
    setattr(block.get_submodule(parent), name, module)


def head_size(block: nn.Module, architecture: Architecture) -> int:
    """Return the columns of a head, of a block that has attention."""
    return getattr(find(block, architecture.attention), architecture.head_size)


def own_heads(block: nn.Module, architecture: Architecture) -> torch.Tensor:
    """Return the places of the heads of a block, which has attention, in the dense model."""
    attention: Any = find(block, architecture.attention)
    if isinstance(attention, OwnBias):
        return attention.own_heads
    device = next(attention.parameters()).device
    return torch.arange(attention.num_attention_heads, device=device)


def keep_heads_(block: nn.Module, architecture: Architecture, heads: torch.Tensor) -> None:
    """Let an attention with a bias of positions read it at these heads of the dense model."""
    attention: Any = find(block, architecture.attention)
    attention.__class__ = OwnBias
    attention.register_buffer("own_heads", heads)


def block_shape(block: nn.Module, architecture: Architecture) -> tuple[int, int, int, int]:
    """Return (KV groups, query heads per group, FFN width, experts) of a block; 0 where it is gone.

    Where there are experts, the width is that of each; 0 experts are an FFN.
    """
    groups = heads = width = count = 0
    output = find(block, architecture.attention_output)
    if not _gone(output):
        head_dim = head_size(block, architecture)
        total = _size(output)[1] // head_dim
        first, *others = (
            _size(find(block, i))[0] // head_dim for i in architecture.attention_inputs
        )
        groups = others[0] if others else (first - total) // 2
        assert total % groups == 0, f"{total} query heads do not spread over {groups} KV heads"
        heads = total // groups
    output = find(block, architecture.ffn_output)
    if not _gone(output):
        width = _size(output)[1]
    if architecture.experts and (experts := find(block, architecture.experts)) is not None:
        count, width = _stacked(experts).shape[0], _stacked(experts).shape[2]
    return groups, heads, width, count


def _stacked(experts: Any) -> torch.Tensor:
    """Return the projections of all experts back to the stream, [experts, hidden, width]."""
    if not hasattr(experts, "down_proj"):
        raise ValueError(
            "model: the experts of this model are not stacked in one tensor, as transformers 5 has "
            "them: update transformers"
        )
    return experts.down_proj


def resize_block_(
    block: nn.Module,
    architecture: Architecture,
    groups: int,
    heads: int,
    width: int,
    experts: int = 0,
) -> None:
    """Give a block `groups` KV groups of `heads` query heads each and an FFN of `width`.

    Or so many experts, each of that width. Projections that change are replaced by new ones with
    undefined values on the same device; existing parameters are never written. Zeros mean that the
    sub-block goes, with its norm.
    """
    if getattr(block, "do_layer_norm_before", True) is False:
        raise ValueError(
            "do_layer_norm_before=False: the norms of this OPT come after the residual additions, "
            "so its sub-blocks cannot be resized; use a size other than 350m"
        )
    assert (groups == 0) == (heads == 0), f"{groups} KV groups of {heads} query heads"
    old_groups, old_heads, old_width, old_experts = block_shape(block, architecture)
    if (groups, heads) != (old_groups, old_heads):
        assert max(groups - old_groups, heads - old_heads) <= 0, "a block can only shrink"
        assert groups == 0 or not architecture.heads_together, "a norm reads all heads at once"
        _resize_attention_(block, architecture, groups, heads)
    if (width, experts) != (old_width, old_experts):
        assert max(width - old_width, experts - old_experts) <= 0, "a block can only shrink"
        assert (width and old_experts) == 0 or experts, f"no experts of width {width}"
        if experts:
            _resize_experts_(block, architecture, experts, width)
        else:
            _resize_ffn_(block, architecture, width)


def _resize_attention_(block: nn.Module, a: Architecture, groups: int, heads: int) -> None:
    if groups == 0:
        old = find(block, a.attention)
        facts = (getattr(old, name, None) for name in ("config", "layer_idx"))
        replace_(block, a.attention, ZeroAttention(*facts))
        if find(block, a.attention_output) is not None:  # it lies beside the attention
            replace_(block, a.attention_output, Zero())
        for norm in filter(None, (a.attention_norm, a.attention_output_norm)):
            replace_(block, norm, nn.Identity())
        return
    assert a.kv_heads or heads == 1, "without GQA every group is one query head"
    attention, size = find(block, a.attention), head_size(block, a)
    rows = [groups * heads * size, *2 * [groups * size]]
    if len(a.attention_inputs) == 1:
        rows = [sum(rows)]
    for path, count in zip(a.attention_inputs, rows, strict=True):
        _resize_(block, path, rows=count)
    _resize_(block, a.attention_output, columns=groups * heads * size)
    counts = {
        "num_key_value_groups": heads,
        "num_key_value_heads": groups,
        **dict.fromkeys(("num_heads", "num_attention_heads", "n_heads"), groups * heads),
        **dict.fromkeys(("split_size", "all_head_size", "dim"), groups * heads * size),
    }
    for name, count in counts.items():
        if hasattr(attention, name):
            setattr(attention, name, count)
    if a.position_bias:
        keep_heads_(block, a, own_heads(block, a)[:groups])
    if a.heads_in_config:
        shared = getattr(attention.config, "config", attention.config)  # of what was cut before
        attention.config = OwnHeads(shared, **{a.heads: groups * heads})


def _resize_experts_(block: nn.Module, a: Architecture, count: int, width: int) -> None:
    experts, router = find(block, a.experts), find(block, a.router)
    if count < router.top_k:
        raise ValueError(
            f"experts={count}: every token is routed to {router.top_k}, so that as many have to "
            "be left; keep more, or none"
        )
    _, hidden, old_width = _stacked(experts).shape
    if width % EXPERT_MULTIPLE and width != old_width:
        raise ValueError(
            f"experts of width {width}: products of several matrices at once need rows of 16 bytes "
            f"and multiples of them; keep a multiple of {EXPERT_MULTIPLE} channels"
        )
    for module, name, shape in (
        (experts, "gate_up_proj", (count, 2 * width, hidden)),
        (experts, "down_proj", (count, hidden, width)),
        (router, "weight", (count, hidden)),
    ):
        old = getattr(module, name)
        setattr(module, name, nn.Parameter(old.new_empty(shape), old.requires_grad))
    for module in (experts, router):
        module.__dict__.pop("_is_hf_initialized", None)  # for who draws weights anew
    experts.num_experts = router.num_experts = count
    experts.intermediate_dim = width


def _resize_ffn_(block: nn.Module, a: Architecture, width: int) -> None:
    if width == 0:
        whole = a.ffn_output.rpartition(".")[0]
        parts = (*a.ffn_inputs, a.ffn_output)
        for path in parts if a.post_norm or not whole else (whole,):  # vLLM fuses projections
            replace_(block, path, Zero())
        for norm in filter(None, (a.ffn_norm, a.ffn_output_norm)):
            replace_(block, norm, nn.Identity())
        return
    old = _size(find(block, a.ffn_output))[1]
    for path in a.ffn_inputs:
        _resize_(block, path, rows=_size(find(block, path))[0] // old * width)
    _resize_(block, a.ffn_output, columns=width)
    ffn: Any = block.get_submodule(a.ffn_output.rpartition(".")[0])
    if hasattr(ffn, "intermediate_size"):
        ffn.intermediate_size = width


def _gone(module: Any) -> bool:
    """Tell whether a projection was removed; by what it has, since loaded code has its own Zero."""
    return module is None or next(module.parameters(), None) is None


def _size(module: Any) -> tuple[int, int]:
    """Return the output and input features of a projection."""
    if isinstance(getattr(module, "rank", None), int):
        return module.B.out_features, module.A.in_features
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def add_output_biases_(blocks: Any, architecture: Architecture) -> None:
    """Give every projection back to the residual stream a bias, of zeros where it had none."""
    for block in blocks:
        for path in (architecture.attention_output, architecture.ffn_output):
            output = find(block, path)
            if isinstance(output, nn.Linear) and output.bias is None:
                zeros = output.weight.new_zeros(_size(output)[0])
                output.bias = nn.Parameter(zeros, output.weight.requires_grad)


def factorise_(block: nn.Module, path: str, rank: int) -> LowRank:
    """Replace the projection at `path` in a block by two with undefined values, and return them."""
    old: Any = block.get_submodule(path)
    rows, columns = _size(old)
    with torch.device("meta"):
        new = LowRank(columns, rank, rows, bias=old.bias is not None)
    new = new.to(old.weight.dtype).to_empty(device=old.weight.device).train(old.training)
    replace_(block, path, new.requires_grad_(old.weight.requires_grad))
    return new


def scale_of(embedding: nn.Module) -> float:
    """Return what an embedding multiplies its rows by: gemma has such a factor."""
    return float(getattr(embedding, "scalar_embed_scale", 1.0))


def cluster_embedding_(
    model: Any, sizes: list[int], ranks: list[int], tied: bool
) -> ClusteredEmbedding:
    """Replace the embedding, and a head that is tied to it, by clusters with undefined values."""
    old = model.get_input_embeddings()
    with torch.device("meta"):
        new = ClusteredEmbedding(sizes, ranks, old.embedding_dim, scale_of(old))
    new = new.to(old.weight.dtype).to_empty(device=old.weight.device).train(old.training)
    set_embedding_(model, new.requires_grad_(old.weight.requires_grad), tied)
    return new


def set_embedding_(model: Any, embedding: nn.Module, tied: bool) -> None:
    """Put an embedding that can also be a head in its place, or in both."""
    model.set_input_embeddings(embedding)
    if tied:
        model.set_output_embeddings(ClusteredHead(embedding))
        model.config.tie_word_embeddings = False  # not in transformers' sense


def ranks(block: nn.Module) -> dict[str, int]:
    """Return the rank of every projection of a block that is a product of two, by its path."""
    by_path = {path: getattr(module, "rank", None) for path, module in block.named_modules()}
    return {path: rank for path, rank in by_path.items() if isinstance(rank, int)}


def _resize_(block: nn.Module, path: str, rows: int | None = None, columns: int | None = None):
    """Replace a projection by an empty one with other numbers of rows or columns."""
    old = find(block, path)
    rows, columns = rows or _size(old)[0], columns or _size(old)[1]
    with torch.device("meta"):
        if isinstance(old, Conv1D):
            new = Conv1D(rows, columns)
        else:
            new = nn.Linear(columns, rows, bias=old.bias is not None)
    new = new.to(old.weight.dtype).to_empty(device=old.weight.device).train(old.training)
    replace_(block, path, new.requires_grad_(old.weight.requires_grad))


class _Pruned:
    """Build the dense model, then resize every block as `pruned_blocks` says."""

    def __init__(self, config: Any, *args, **kwargs):
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        a = ARCHITECTURES[config.model_type]
        base, _, inside = a.blocks.partition(".")  # this may be the model without its head
        path = a.blocks if hasattr(self, base) else inside
        blocks = self.get_submodule(path)  # type: ignore[attr-defined]
        for block, left in zip(blocks, config.pruned_blocks, strict=True):  # type: ignore[arg-type]
            groups, total = left["kv_heads"], left["query_heads"]
            assert total % max(groups, 1) == 0, f"{total} query heads do not spread over {groups}"
            sizes = groups, total // max(groups, 1), left["ffn"], left.get("experts", 0)
            resize_block_(block, a, *sizes)
        if getattr(config, "output_bias", False):
            add_output_biases_(blocks, a)
        for index, paths in (getattr(config, "ranks", None) or {}).items():
            for path, rank in paths.items():
                factorise_(blocks[int(index)], path, rank)  # type: ignore[index]
        if clusters := getattr(config, "embedding_clusters", None):
            cluster_embedding_(self, **clusters)
        self.post_init()  # type: ignore[attr-defined]


class _WithExperts(_Pruned):
    """Let transformers choose how experts are run: it reads in the source who can have that."""

    _can_set_experts_implementation_cached_value = True


class PrunedLlamaModel(_Pruned, LlamaModel):
    pass


class PrunedLlamaForCausalLM(_Pruned, LlamaForCausalLM):
    pass


class PrunedMistralModel(_Pruned, MistralModel):
    pass


class PrunedMistralForCausalLM(_Pruned, MistralForCausalLM):
    pass


class PrunedQwen2Model(_Pruned, Qwen2Model):
    pass


class PrunedQwen2ForCausalLM(_Pruned, Qwen2ForCausalLM):
    pass


class PrunedQwen3Model(_Pruned, Qwen3Model):
    pass


class PrunedQwen3ForCausalLM(_Pruned, Qwen3ForCausalLM):
    pass


class PrunedQwen3MoeModel(_WithExperts, Qwen3MoeModel):
    pass


class PrunedQwen3MoeForCausalLM(_WithExperts, Qwen3MoeForCausalLM):
    pass


class PrunedMixtralModel(_WithExperts, MixtralModel):
    pass


class PrunedMixtralForCausalLM(_WithExperts, MixtralForCausalLM):
    pass


class PrunedOlmoeModel(_WithExperts, OlmoeModel):
    pass


class PrunedOlmoeForCausalLM(_WithExperts, OlmoeForCausalLM):
    pass


class PrunedGemmaModel(_Pruned, GemmaModel):
    pass


class PrunedGemmaForCausalLM(_Pruned, GemmaForCausalLM):
    pass


class PrunedGemma2Model(_Pruned, Gemma2Model):
    pass


class PrunedGemma2ForCausalLM(_Pruned, Gemma2ForCausalLM):
    pass


class PrunedGemma3TextModel(_Pruned, Gemma3TextModel):
    pass


class PrunedGemma3ForCausalLM(_Pruned, Gemma3ForCausalLM):
    pass


class PrunedGraniteModel(_Pruned, GraniteModel):
    pass


class PrunedGraniteForCausalLM(_Pruned, GraniteForCausalLM):
    pass


class PrunedPhi3Model(_Pruned, Phi3Model):
    pass


class PrunedPhi3ForCausalLM(_Pruned, Phi3ForCausalLM):
    pass


class PrunedSmolLM3Model(_Pruned, SmolLM3Model):
    pass


class PrunedSmolLM3ForCausalLM(_Pruned, SmolLM3ForCausalLM):
    pass


class PrunedGPTNeoXModel(_Pruned, GPTNeoXModel):
    pass


class PrunedGPTNeoXForCausalLM(_Pruned, GPTNeoXForCausalLM):
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Read the head under its name in files, which transformers 5 renames in its own class."""
        if "embed_out.weight" not in cls._tied_weights_keys:
            kwargs.setdefault("key_mapping", {r"^embed_out\.": "lm_head."})
        return super().from_pretrained(*args, **kwargs)


class PrunedGPT2Model(_Pruned, GPT2Model):
    pass


class PrunedGPT2LMHeadModel(_Pruned, GPT2LMHeadModel):
    pass


class PrunedOPTModel(_Pruned, OPTModel):
    pass


class PrunedOPTForCausalLM(_Pruned, OPTForCausalLM):
    pass


class PrunedBertForSequenceClassification(_Pruned, BertForSequenceClassification):
    pass


class PrunedRobertaForSequenceClassification(_Pruned, RobertaForSequenceClassification):
    pass


class PrunedDistilBertForSequenceClassification(_Pruned, DistilBertForSequenceClassification):
    pass


class PrunedBertForQuestionAnswering(_Pruned, BertForQuestionAnswering):
    pass


class PrunedRobertaForQuestionAnswering(_Pruned, RobertaForQuestionAnswering):
    pass


class PrunedDistilBertForQuestionAnswering(_Pruned, DistilBertForQuestionAnswering):
    pass


class PrunedMPNetForSequenceClassification(_Pruned, MPNetForSequenceClassification):
    pass


class PrunedMPNetForQuestionAnswering(_Pruned, MPNetForQuestionAnswering):
    pass


class PrunedModernBertForSequenceClassification(_Pruned, ModernBertForSequenceClassification):
    pass


class PrunedModernBertForQuestionAnswering(_Pruned, ModernBertForQuestionAnswering):
    pass


class PrunedElectraForSequenceClassification(_Pruned, ElectraForSequenceClassification):
    pass


class PrunedElectraForQuestionAnswering(_Pruned, ElectraForQuestionAnswering):
    pass


class PrunedDebertaV2ForSequenceClassification(_Pruned, DebertaV2ForSequenceClassification):
    pass


class PrunedDebertaV2ForQuestionAnswering(_Pruned, DebertaV2ForQuestionAnswering):
    pass
