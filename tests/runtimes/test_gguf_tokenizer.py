"""A tokenizer in a GGUF file is the one that the model came with."""

import json

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pruning.runtimes.gguf_file import write_gguf
from pruning.runtimes.gguf_tokenizer import WORDS, split_name
from tests.helpers.families import llama
from tests.helpers.tiny import word_tokenizer
from tests.runtimes.test_gguf import read


def byte_tokenizer(before, ignore_merges=False):
    """Make a byte-level tokenizer of 120 tokens with two special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:115]
    vocabulary = {token: i for i, token in enumerate(["<|end|>", *letters, "ab", "abc"])}
    merges = [("a", "b"), ("ab", "c")]
    bytes_ = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    bytes_.pre_tokenizer = before
    made = PreTrainedTokenizerFast(tokenizer_object=bytes_, eos_token="<|end|>")
    made.add_tokens(["<tool>"])
    made.chat_template = "{{ messages }}"
    return made


def test_the_tokenizer_is_in_the_file(tmp_path):
    write_gguf(llama(), byte_tokenizer(pre_tokenizers.ByteLevel(False)), tmp_path / "a")
    fields = read(tmp_path / "a")[1]
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == fields["vocab_size"] == 128
    assert tokens[116:120] == ["ab", "abc", "<tool>", "[PAD119]"]
    assert fields["tokenizer.ggml.merges"] == ["a b", "ab c"]
    types = fields["tokenizer.ggml.token_type"]
    assert [types[i] for i in (0, 1, 118, 119)] == [3, 1, 4, 5]  # control, normal, own, unused
    assert fields["tokenizer.ggml.eos_token_id"] == 0
    assert "tokenizer.ggml.bos_token_id" not in fields
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == "{{ messages }}"


def splitting(pattern):
    """Return how Llama 3 and Qwen 2 split."""
    first = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(False, use_regex=False)])


@pytest.mark.parametrize(
    ("before", "skips", "name"),
    [
        (pre_tokenizers.ByteLevel(False), False, "gpt-2"),
        (
            pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]),
            False,
            "smollm",
        ),
        (splitting(WORDS % r"\p{N}"), False, "qwen2"),
        (splitting(WORDS % r"\p{N}{1,3}"), True, "llama-bpe"),
        (splitting(WORDS % r"\p{N}{1,3}"), False, "default"),
        (splitting("x"), False, "default"),
        (pre_tokenizers.ByteLevel(True), False, "default"),
    ],
)
def test_how_text_is_split_has_a_name(tmp_path, caplog, before, skips, name):
    tokenizer = byte_tokenizer(before, skips)
    assert split_name(json.loads(tokenizer.backend_tokenizer.to_str())) == name
    write_gguf(llama(), tokenizer, tmp_path / "a")
    assert read(tmp_path / "a")[1]["tokenizer.ggml.pre"] == name
    assert ("llama_cpp: how this tokenizer splits" in caplog.text) == (name == "default")


def test_other_tokenizers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^runtime=llama_cpp: .*WordLevel.* only BPE"):
        write_gguf(llama(), word_tokenizer(), tmp_path / "a")
    many = byte_tokenizer(pre_tokenizers.ByteLevel(False))
    many.add_tokens([f"more{i}" for i in range(20)])
    with pytest.raises(ValueError, match=r"^runtime=llama_cpp: the tokenizer has 139 tokens and"):
        write_gguf(llama(), many, tmp_path / "a")
    assert not [*tmp_path.iterdir()]
