"""Batches of token rows: packed running text, or padded rows of a task."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pruning.data.bos import Encoder
from pruning.system.cache import digest, digest_tensors

Row = dict[str, Tensor]  # input_ids, token_type_ids where the tokenizer has them, labels of a task
Item = TypeVar("Item")
INPUTS = ("input_ids", "token_type_ids")


@dataclass
class Batch:
    """Token rows with 1 in `mask` where a token is real and 0 where it is padding."""

    ids: Int[Tensor, "batch sequence"]
    mask: Int[Tensor, "batch sequence"]
    held_out: bool = False
    types: Int[Tensor, "batch sequence"] | None = None  # 1 in the second text of a pair
    labels: Row = field(default_factory=dict)  # of a task, one value per row
    head: int = 0  # tokens that every row begins with, and every part cut from it

    @classmethod
    def from_rows(cls, rows: Sequence[Row], filler: int) -> "Batch":
        """Pad rows on the right with the token `filler`."""
        ids, *types = (
            pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
            for name, value in zip(INPUTS, (filler, 0), strict=True)
            if name in rows[0]
        )
        mask = pad_sequence([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True)
        labels = {k: torch.stack([row[k] for row in rows]) for k in rows[0] if k not in INPUTS}
        return cls(ids, mask, types=types[0] if types else None, labels=labels)

    @property
    def tokens(self) -> int:
        """Count the real tokens."""
        return int(self.mask.sum())

    def inputs(self, device: torch.device) -> Row:
        """Return what a model is called with."""
        inputs = {"input_ids": self.ids, "attention_mask": self.mask}
        if self.types is not None:
            inputs["token_type_ids"] = self.types
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def rows(self) -> list[Row]:
        """Return the rows without their padding."""
        rows = []
        for index, real in enumerate(self.mask.bool()):
            row = {"input_ids": self.ids[index][real]}
            if self.types is not None:
                row["token_type_ids"] = self.types[index][real]
            rows.append(row | {name: label[index] for name, label in self.labels.items()})
        return rows

    def digest(self) -> str:
        """Hash the tokens, the mask, the use and the labels."""
        named = {"ids": self.ids, "mask": self.mask}
        if self.types is not None:
            named["types"] = self.types
        labels = {f"label {name}": label for name, label in sorted(self.labels.items())}
        return digest([self.held_out, digest_tensors((named | labels).items())])

    def take(self, rows: Tensor | slice, columns: slice = slice(None)) -> "Batch":
        """Return some rows, and some columns of them, behind the head."""
        chosen = range(self.ids.shape[1])[columns]
        chosen = [*range(self.head), *(column for column in chosen if column >= self.head)]
        return replace(
            self,
            ids=self.ids[rows][:, chosen],
            mask=self.mask[rows][:, chosen],
            types=None if self.types is None else self.types[rows][:, chosen],
            labels={name: label[rows] for name, label in self.labels.items()},
        )

    def split(self, size: int) -> list["Batch"]:
        """Cut into batches of at most `size` rows."""
        return [self.take(slice(start, start + size)) for start in range(0, len(self.ids), size)]


def digest_rows(rows: Sequence[Row]) -> str:
    """Hash all that rows hold, 16 hexadecimal digits."""
    named = (
        (f"{index} {name}", tensor)
        for index, row in enumerate(rows)
        for name, tensor in sorted(row.items())
    )
    return digest([len(rows), digest_tensors(named)])


def shuffled(items: Sequence[Item], seed: int) -> Iterator[Item]:
    """Yield every item once, in random order."""
    generator = torch.Generator().manual_seed(seed)
    return (items[i] for i in torch.randperm(len(items), generator=generator).tolist())


def pack(encode: Encoder, documents: list[str], sequence: int, tokens: int, seed: int) -> Batch:
    """Join shuffled documents by blank lines and cut them into at least `tokens` / `sequence` rows.

    Each row begins with the encoder's head, which is counted. One long document (a whole book in a
    file) is cut at random places instead of being shuffled.
    """
    rows, width = -(-tokens // sequence), sequence - len(encode.head)
    ids: list[int] = []
    for text in shuffled(documents, seed):
        ids += encode(text + "\n\n")
        if len(documents) > 1 and len(ids) >= rows * width:
            break
    packed = torch.tensor(ids[: len(ids) // width * width], dtype=torch.long).view(-1, width)
    if len(documents) == 1:
        packed = packed[torch.randperm(len(packed), generator=torch.Generator().manual_seed(seed))]
    packed = packed[:rows]
    head = torch.tensor(encode.head, dtype=torch.long).expand(len(packed), -1)
    packed = torch.cat([head, packed], 1)
    return Batch(packed, torch.ones_like(packed), head=len(encode.head))


def cut(encode: Encoder, documents: list[str], sequence: int, seed: int) -> Iterator[Row]:
    """Yield shuffled documents, each cut at `sequence` tokens, the encoder's head among them."""
    for text in shuffled(documents, seed):
        yield {"input_ids": torch.tensor([*encode.head, *encode(text)][:sequence])}


def pad(rows: Iterable[Row], tokens: int, filler: int) -> Batch:
    """Put rows under each other, padded on the right, until there are `tokens` of them."""
    taken, count = [], 0
    for row in rows:
        taken.append(row)
        count += len(row["input_ids"])
        if count >= tokens:
            break
    return Batch.from_rows(taken, filler)
