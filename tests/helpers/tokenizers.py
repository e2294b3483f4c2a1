"""BPE tokenizers of either kind, trained on the README."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

README = Path(__file__).parents[2] / "README.md"


def byte_level(before: pre_tokenizers.PreTokenizer, size: int = 600) -> PreTrainedTokenizerFast:
    """Train BPE of bytes, on what text is split into before."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = before
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": size, "show_progress": False, "initial_alphabet": alphabet}
    made.train_from_iterator([README.read_text(encoding="utf-8")], trainers.BpeTrainer(**options))
    return PreTrainedTokenizerFast(tokenizer_object=made)


def sentencepiece_like(size: int = 600, metaspace: bool = False) -> PreTrainedTokenizerFast:
    """Train BPE of whole words behind a space, with a token for every byte, as Llama 2 has it."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(steps)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    trainer = trainers.BpeTrainer(vocab_size=size - 259, show_progress=False)
    words.train_from_iterator(README.read_text(encoding="utf-8").split("\n"), trainer)
    learned = json.loads(words.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *learned["vocab"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(pair) for pair in learned["merges"]]
    made.model = models.BPE(vocabulary, pairs, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
