"""A model and its tokenizer without the tokens that some texts do not need."""

import json
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.models.bpe import always, closed, cut, ranked, refusal
from pruning.models.shrink import copy_sharing_weights
from pruning.models.sites import architecture

MULTIPLE = 64  # rows of the embedding are one of this: matrix units run others slower
TEXTS = 1000  # that are tokenised at a time
REMEDY = "give model.vocabulary=keep, or another model"
STALE = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")


def trim(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    scripts: Sequence[str] = (),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return both without the tokens that neither these texts nor whole scripts need.

    The texts have the same tokens as before, under new numbers in the same order, and the logits of
    these are the same. Special tokens and those of single bytes stay, so that every text can be
    read. The new model shares all other weights with the given one.

    ValueError where the tokenizer or the embedding cannot be cut.
    """
    said = f"model.vocabulary=trim: the tokenizer {type(tokenizer).__name__} cannot be cut"
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    description = json.loads(backend.to_str()) if backend is not None else {}
    if reason := refusal(description):
        raise ValueError(f"{said}: {reason}: {REMEDY}")
    if architecture(model).encoder:
        raise ValueError("model.vocabulary=trim is for decoders: give model.vocabulary=keep")
    if not isinstance(model.get_input_embeddings(), nn.Embedding):
        raise ValueError(
            f"model.vocabulary=trim: an embedding that is a product cannot be cut: {REMEDY}"
        )
    rows = model.config.vocab_size  # a tokenizer may have more tokens, and a model more rows
    names = {index: token for token, index in tokenizer.get_vocab().items() if index < rows}
    marked = _used(tokenizer, texts) | _marked(model, tokenizer)
    kept = {names[index] for index in marked if index in names}
    kept |= _of_scripts(tokenizer, scripts) | always(description)
    kept = _filled(closed(kept, description["model"]), names, description["model"])
    ids = [index for index, token in sorted(names.items()) if token in kept]
    number = {old: new for new, old in enumerate(ids)}
    smaller = _tokenizer(tokenizer, cut(description, number))
    same = smaller.get_vocab() == {names[old]: new for old, new in number.items()}
    texts_of = (_encoded(each, texts) for each in (tokenizer, smaller))
    if not same or any([*map(number.get, old)] != new for old, new in zip(*texts_of, strict=True)):
        raise ValueError(f"{said}: a text that it is to keep has other tokens then: {REMEDY}")
    return _model(model, ids, number), smaller


def _used(tokenizer: Any, texts: Sequence[str]) -> set[int]:
    """Return the tokens of texts."""
    used: set[int] = set()
    for ids in _encoded(tokenizer, texts):
        used.update(ids)
    return used


def _encoded(tokenizer: Any, texts: Sequence[str]) -> Any:
    for start in range(0, len(texts), TEXTS):
        some = list(texts[start : start + TEXTS])
        yield from tokenizer(some, add_special_tokens=False, verbose=False).input_ids


def _marked(model: PreTrainedModel, tokenizer: Any) -> set[int]:
    """Return the tokens that a model or a tokenizer has a name for."""
    marked = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for config in (model.config, model.generation_config):
        for _, value in _ids(config):
            marked.update(value if isinstance(value, list) else [value])
    return marked


def _ids(config: Any) -> list[tuple[str, Any]]:
    """Return the fields of a config that are numbers of tokens."""
    fields = config.to_dict().items() if config is not None else ()
    ends = ("_token_id", "_token_ids", "suppress_tokens")
    return [(key, value) for key, value in fields if key.endswith(ends) and value is not None]


def _filled(kept: set[str], names: dict[int, str], model: dict[str, Any]) -> set[str]:
    """Add the first of the other tokens, until there are a multiple of `MULTIPLE`."""
    ranks = ranked(model)
    for _, token in sorted(names.items()):
        if len(kept) % MULTIPLE == 0:
            break
        if token not in kept:
            kept = kept | closed([token], model, ranks)
    return kept


def _tokenizer(tokenizer: Any, description: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Return a tokenizer like another, of which `tokenizers` has this description."""
    with tempfile.TemporaryDirectory(prefix="pruning-tokenizer-") as directory:
        path = Path(directory)
        tokenizer.save_pretrained(path)
        for name in STALE:
            (path / name).unlink(missing_ok=True)
        text = json.dumps(description, ensure_ascii=False)
        (path / "tokenizer.json").write_text(text, encoding="utf-8")
        file = path / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        numbers = {token["content"]: token["id"] for token in description["added_tokens"]}
        if known := config.get("added_tokens_decoder"):
            config["added_tokens_decoder"] = {
                str(numbers[token["content"]]): token for token in known.values()
            }
        file.write_text(json.dumps(config), encoding="utf-8")
        smaller = type(tokenizer).from_pretrained(path)
    smaller.name_or_path = tokenizer.name_or_path
    return smaller


@torch.no_grad()
def _model(model: PreTrainedModel, ids: list[int], number: dict[int, int]) -> PreTrainedModel:
    """Return a model with the rows `ids` of embedding and head, which shares all else."""
    made: Any = copy_sharing_weights(model)
    embedding, head = made.get_input_embeddings(), made.get_output_embeddings()
    tied = head.weight is embedding.weight
    for module in (embedding,) if tied else (embedding, head):
        module.weight = _rows(module.weight, ids)
    if tied:
        head.weight = embedding.weight
    if getattr(head, "bias", None) is not None:
        head.bias = _rows(head.bias, ids)
    embedding.num_embeddings = head.out_features = len(ids)
    for module in (made, made.base_model, embedding):
        if getattr(module, "padding_idx", None) is not None:
            module.padding_idx = number.get(module.padding_idx)
        if hasattr(module, "vocab_size"):
            module.vocab_size = len(ids)
    made.config.vocab_size = len(ids)
    for config in (made.config, made.generation_config):
        for key, value in _ids(config):
            many = isinstance(value, list)
            left = [number[i] for i in (value if many else [value]) if i in number]
            setattr(config, key, left if many else next(iter(left), None))
    return made


def _rows(weight: nn.Parameter, ids: list[int]) -> nn.Parameter:
    chosen = torch.tensor(ids, device=weight.device)
    return nn.Parameter(weight[chosen], requires_grad=weight.requires_grad)


def _of_scripts(tokenizer: Any, scripts: Sequence[str]) -> set[str]:
    """Return the tokens of whole scripts; ValueError for one that no token is of."""
    by_script: dict[str, list[str]] = {}
    for token, name in script_of(tokenizer).items():
        by_script.setdefault(name, []).append(token)
    wanted = [name.upper() for name in scripts]
    for name in wanted:
        if name not in by_script:
            raise ValueError(
                f"model.kept_scripts={list(scripts)}: no token is {name}: give some of "
                f"{', '.join(sorted(by_script)).lower()}"
            )
    return {token for name in wanted for token in by_script[name]}


def script_of(tokenizer: Any) -> dict[str, str]:
    """Return the script of each token that has letters of one alone, as Unicode names it."""
    scripts = {}
    for token, index in tokenizer.get_vocab().items():
        text = tokenizer.backend_tokenizer.decode([index], skip_special_tokens=False)
        named = {unicodedata.name(c, " ").split(" ")[0] for c in text if c.isalpha()}
        if len(named) == 1:
            scripts[token] = named.pop()
    return scripts


def counted(tokenizer: Any) -> Counter[str]:
    """Count the tokens of each script."""
    return Counter(script_of(tokenizer).values())
