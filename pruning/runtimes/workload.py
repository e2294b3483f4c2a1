"""What a model is timed at: a phase of inference, and how much of it."""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What a model does while it is timed."""

    auto = "auto"  # encode for encoders, else prefill
    prefill = "prefill"  # a prompt is read, up to the logits of its last token
    decode = "decode"  # one token of each sequence, behind a KV cache
    generate = "generate"  # a prompt is read and answered, token by token
    encode = "encode"  # type: ignore[assignment]  # whole texts are read; str.encode is not missed


@dataclass(frozen=True)
class Workload:
    """So many sequences and tokens in a phase."""

    phase: Phase
    batch: int  # sequences at once
    sequence: int  # tokens of each; in decode those of the KV cache
    tokens: int = 0  # generated behind each prompt; 0 in other phases

    def __str__(self) -> str:
        size = f"{self.batch} x {self.sequence} tokens"
        if self.phase is Phase.decode:
            return f"decode, {self.batch} x 1 token behind {self.sequence}"
        if self.phase is Phase.generate:
            return f"generate, {size} and {self.tokens} more each"
        return f"{self.phase}, {size}"

    def steps(self) -> "list[tuple[float, Workload]]":
        """Return what it consists of, each phase with how often it happens.

        The first of the generated tokens comes from the prompt's logits; on average half of the
        others are in the cache.
        """
        if self.phase is not Phase.generate:
            return [(1.0, self)]
        middle = self.sequence + self.tokens // 2
        return [
            (1.0, Workload(Phase.prefill, self.batch, self.sequence)),
            (float(self.tokens - 1), Workload(Phase.decode, self.batch, middle)),
        ]
