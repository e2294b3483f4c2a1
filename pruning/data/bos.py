"""Where the beginning-of-sequence token stands in rows of tokens."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Bos(StrEnum):
    """Which rows and windows begin with the beginning-of-sequence token."""

    auto = "auto"  # all, where the tokenizer puts one in front of a text; else as it encodes
    always = "always"  # all
    text = "text"  # as the tokenizer encodes: in front of each text at most, wherever it is cut
    never = "never"  # none

    def encoder(self, tokenizer: "PreTrainedTokenizerBase", field: str) -> "Encoder":
        """Return what encodes texts so.

        ValueError, naming `field`, where the tokenizer has no such token.
        """
        adds = prepends(tokenizer)
        if self is Bos.text or (self is Bos.auto and not adds):
            return Encoder(tokenizer, head=(), strip=False, first=adds)
        if self is Bos.never:
            return Encoder(tokenizer, head=(), strip=adds)
        bos: Any = tokenizer.bos_token_id
        if bos is None:
            raise ValueError(
                f"{field}=always: this tokenizer has no beginning-of-sequence token: give auto or "
                "never"
            )
        return Encoder(tokenizer, head=(bos,), strip=adds)


@dataclass(frozen=True)
class Encoder:
    """Encodes texts; every row that is cut from them begins with `head`."""

    tokenizer: "PreTrainedTokenizerBase"
    head: tuple[int, ...]  # the beginning-of-sequence token, or nothing
    strip: bool  # the tokenizer puts one in front of each text, which is taken away
    first: bool = False  # it does, and it stays there

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text, without the head."""
        ids: list[int] = self.tokenizer(text, verbose=False).input_ids  # type: ignore[assignment]
        return ids[1:] if self.strip else ids

    def bare(self, text: str) -> list[int]:
        """Return the tokens of a text without any special ones."""
        options: Any = {"add_special_tokens": False, "verbose": False}
        return self.tokenizer(text, **options).input_ids  # type: ignore[return-value]

    @property
    def begun(self) -> str:
        """Say which windows of a text begin with the token: `every`, the `first`, or `none`."""
        return "every" if self.head else "first" if self.first else "none"


def prepends(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Say whether the tokenizer itself puts the beginning-of-sequence token in front of a text."""
    bos = tokenizer.bos_token_id
    own: Any = tokenizer("a", verbose=False).input_ids
    bare: Any = tokenizer("a", add_special_tokens=False, verbose=False).input_ids
    return bos is not None and own[: 1 + len(bare)] == [bos, *bare]
