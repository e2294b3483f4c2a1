"""Cut a BPE tokenizer to some of its tokens, on the JSON that `tokenizers` writes.

BPE merges the pair of the lowest rank until no pair is known. Every merge that was done on the way
to a token is within it, and the same as if the token stood alone. So a text whose tokens are kept,
with all tokens on the way to them, is read as before: the pairs that are gone were never the lowest
in it.
"""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

Pair = tuple[str, str]
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token for what no other stands for


def refusal(description: dict[str, Any]) -> str:
    """Say why a tokenizer cannot be cut; nothing where it can."""
    model = description.get("model") or {}
    kind = model.get("type")
    if kind != "BPE":
        return f"it is {kind or 'not a fast one'}, and only BPE can be cut"
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"its {option} is {model[option]!r}, which is not supported"
    if not of_bytes(description):
        return "it has no tokens for bytes, so that it could not read other text"
    return ""


def of_bytes(description: dict[str, Any]) -> set[str]:
    """Return the tokens of single bytes; none where other text is not read as bytes.

    A tokenizer need not have them all: bytes that no text had when it was made may be left out.
    """
    model = description["model"]
    if model.get("byte_fallback"):
        return {token for token in model["vocab"] if BYTE.fullmatch(token)}
    step = description.get("pre_tokenizer") or {}
    kinds = [each.get("type") for each in step.get("pretokenizers", [step])]
    return letters() & {*model["vocab"]} if "ByteLevel" in kinds else set()


def letters() -> set[str]:
    """Return the characters that stand for bytes: themselves where they are shown, or later ones.

    As GPT-2 has it.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return {*map(chr, shown), *map(chr, range(0x100, 0x200 - len(shown)))}


def always(description: dict[str, Any]) -> set[str]:
    """Return the tokens by which any text can be read."""
    unknown = description["model"].get("unk_token")
    return of_bytes(description) | ({unknown} if unknown else set())


def merges(model: dict[str, Any]) -> list[Pair]:
    """Return the merges of a BPE model by their rank."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in pairs]


def ranked(model: dict[str, Any]) -> dict[Pair, int]:
    """Return the rank of each merge of a BPE model."""
    return {pair: rank for rank, pair in enumerate(merges(model))}


def closed(
    tokens: Iterable[str], model: dict[str, Any], ranks: dict[Pair, int] | None = None
) -> set[str]:
    """Add to some tokens all that are merged on the way to one of them."""
    ranks = ranked(model) if ranks is None else ranks
    known, kept = model["vocab"], set()
    for token in tokens:
        kept.add(token)
        kept |= {part for part in _way(token, ranks) if part in known}
    return kept


def _way(token: str, ranks: dict[Pair, int]) -> set[str]:
    """Return what a token is merged of: its characters, and what comes between."""
    parts, way = list(token), set(token)
    while len(parts) > 1:
        pairs = [*pairwise(parts)]
        first = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if first not in ranks:
            break
        index = pairs.index(first)
        parts[index : index + 2] = ["".join(first)]
        way.add(parts[index])
    return way


def cut(description: dict[str, Any], number: dict[int, int]) -> dict[str, Any]:
    """Return the description of a tokenizer of fewer tokens: those that have a new `number`."""
    model, added = description["model"], description["added_tokens"]
    vocabulary = {t: number[i] for t, i in model["vocab"].items() if i in number}
    pairs = (p for p in merges(model) if {*p, "".join(p)} <= vocabulary.keys())
    smaller = model | {"vocab": vocabulary, "merges": [[*pair] for pair in pairs]}
    added = [token | {"id": number[token["id"]]} for token in added if token["id"] in number]
    behind = _renumbered(description.get("post_processor"), number)
    padding = description.get("padding")
    if padding:
        padding = padding | {"pad_id": number[padding["pad_id"]]}
    changed = {"added_tokens": added, "post_processor": behind, "padding": padding}
    return description | changed | {"model": smaller}


def _renumbered(step: Any, number: dict[int, int]) -> Any:
    """Return what is done behind the merges with the numbers of its special tokens changed."""
    if isinstance(step, list):
        return [_renumbered(each, number) for each in step]
    if not isinstance(step, dict):
        return step
    changed = {}
    for key, value in step.items():
        if key == "ids":
            changed[key] = [number[index] for index in value]
        elif key in ("sep", "cls") and isinstance(value, list):  # of BERT's and RoBERTa's
            changed[key] = [value[0], number[value[1]]]
        else:
            changed[key] = _renumbered(value, number)
    return changed
