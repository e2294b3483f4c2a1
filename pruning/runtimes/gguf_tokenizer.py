"""Say in a GGUF file how a fast tokenizer splits, merges and marks text."""

import json
import logging
import re
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

WORDS = (  # how Llama 3 and Qwen 2 split text; so many digits go together
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {  # llama.cpp's names of how text is split, and whether whole words skip the merges
    (("ByteLevel", True),): ("gpt-2", False),
    (("Digits", True), ("ByteLevel", True)): ("smollm", False),
    (("Split", WORDS % r"\p{N}"), ("ByteLevel", False)): ("qwen2", False),
    (("Split", WORDS % r"\p{N}{1,3}"), ("ByteLevel", False)): ("llama-bpe", True),
}
UNKNOWN = "default"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token for what no other stands for


def add_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int
) -> None:
    """Add a tokenizer of so many tokens; None: the file has token ids alone.

    ValueError where it is not BPE, of bytes or with tokens for single ones as sentencepiece has it.
    """
    writer.add_vocab_size(vocabulary)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = json.loads(backend.to_str()) if backend is not None else {}
    model = described.get("model") or {}
    tokens, types = token_list(tokenizer, vocabulary)
    merges = [m.split(" ") if isinstance(m, str) else m for m in model.get("merges") or []]
    if name := split_name(described):
        if name == UNKNOWN:
            log.warning(
                "llama_cpp: how this tokenizer splits text has no name in llama.cpp: the GGUF file "
                "says 'default', and some words may be split differently there"
            )
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_merges([" ".join(merge) for merge in merges])
    elif model.get("type") == "BPE" and model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores(tokens, merges))
        writer.add_add_space_prefix(begins_with_space(described))
        types = [
            TokenType.BYTE if BYTE.fullmatch(token) and kind is TokenType.NORMAL else kind
            for token, kind in zip(tokens, types, strict=True)
        ]
        if tokenizer.unk_token_id is not None:
            types[int(tokenizer.unk_token_id)] = TokenType.UNKNOWN  # type: ignore[arg-type]
    else:
        raise ValueError(
            f"runtime=llama_cpp: the tokenizer {type(tokenizer).__name__} "
            f"({model.get('type', 'not a fast one')}) cannot be written to GGUF, only BPE of bytes "
            "or with bytes can: give a model with such a tokenizer (SmolLM, Llama, Qwen, Mistral), "
            "or another runtime"
        )
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special(writer, tokenizer)


def scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Return what sentencepiece prefers tokens by: those that are merged first."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def begins_with_space(described: dict[str, Any]) -> bool:
    """Say whether a text is read as if a space came before it."""
    steps = []
    for part in ("normalizer", "pre_tokenizer"):
        step = described.get(part) or {}
        steps += step.get("normalizers") or step.get("pretokenizers") or [step]
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def split_name(described: dict[str, Any]) -> str | None:
    """Return llama.cpp's name of how a tokenizer splits text; None if it is no byte-level BPE."""
    model, before = described.get("model") or {}, described.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    if model.get("type") != "BPE" or "ByteLevel" not in [step.get("type") for step in steps]:
        return None
    name, skips = SPLITS.get(tuple(map(_step, steps)), (UNKNOWN, False))
    return name if bool(model.get("ignore_merges")) == skips else UNKNOWN


def _step(step: dict[str, Any]) -> tuple[str, Any]:
    """Return what tells a step of splitting from others of its type."""
    kind = step["type"]
    if kind == "ByteLevel":
        return kind, step.get("use_regex", True) if not step.get("add_prefix_space") else None
    if kind == "Digits":
        return kind, step.get("individual_digits")
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return kind, step["pattern"].get("Regex")
    return kind, None


def token_list(
    tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> tuple[list[str], list[TokenType]]:
    """Return every token with its type; rows of the embedding that no token has are unused.

    ValueError where there are more tokens than rows.
    """
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(by_id) >= vocabulary:
        raise ValueError(
            f"runtime=llama_cpp: the tokenizer has {max(by_id) + 1} tokens and the model "
            f"{vocabulary}: give the tokenizer that belongs to the model"
        )
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for index in range(vocabulary):
        kind = TokenType.NORMAL
        if index not in by_id:
            kind = TokenType.UNUSED
        elif index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        types.append(kind)
    return tokens, types


def _add_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add which tokens begin and end a text, whether they are added to it, and a chat's form."""
    for role in ("bos", "eos", "unk", "pad"):
        if (index := getattr(tokenizer, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(int(index))
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    if isinstance(template := getattr(tokenizer, "chat_template", None), str):
        writer.add_chat_template(template)
