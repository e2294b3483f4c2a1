"""Token perplexity against transformers' own loss."""

import math

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from pruning.data.bos import Bos, Encoder
from pruning.data.text import Text
from pruning.evaluation.part import Candidate
from pruning.evaluation.parts import Perplexity
from pruning.evaluation.perplexity import cut, ends, joined, predicted_bytes, token_perplexity
from pruning.runtimes.served import Served
from pruning.system.cache import Cache
from tests.helpers.families import llama
from tests.helpers.tokenizers import byte_level
from tests.helpers.trimmed import LINES, with_rows


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_token_perplexity_is_exp_of_transformers_mean_loss(model, batch):
    tokens = torch.randint(0, model.config.vocab_size, (5 * 8 + 3,))  # a tail of 3 is dropped
    losses = []
    for k in range(5):
        row = tokens[None, 8 * k : 8 * k + 8]
        losses.append(model(input_ids=row, labels=row).loss.item())
    expected = math.exp(sum(losses) / 5)
    assert token_perplexity(model, tokens, 8, batch) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_says_nothing_has_the_vocabulary_as_perplexity(model):
    def flat(ids, mask):
        return {"logits": torch.zeros(*ids.shape, 50, dtype=torch.bfloat16)}

    tokens = torch.arange(40)
    assert token_perplexity(Served(model, flat), tokens, 10, 2) == pytest.approx(50)


def test_documents_are_joined_by_a_blank_line_without_special_tokens(tokenizer):
    encode = Bos.auto.encoder(tokenizer, "bos")
    found = encode(joined(encode, ["the sun ", " ice"], None))
    assert tokenizer.convert_ids_to_tokens(found) == ["the", "sun", "\n\n", "ice"]


def test_no_more_documents_are_tokenized_than_needed(tokenizer):
    encode = Bos.auto.encoder(tokenizer, "bos")
    found = encode(joined(encode, ["the sun ", " ice ", " fire"], 3))
    assert tokenizer.convert_ids_to_tokens(found) == ["the", "sun", "\n\n", "ice"]


@pytest.mark.parametrize("head", [(), (3,)])
@pytest.mark.parametrize("window", [5, 8])
def test_bytes_are_those_of_the_predicted_tokens(window, head):
    tokenizer = byte_level(ByteLevel(add_prefix_space=False))
    plain = "".join(f" {line}" for line in LINES[:9]).encode("ascii", "ignore").decode()
    width = window - len(head)
    for text, most in ((plain, 0), (plain.replace("e", "é"), 2)):
        encode = Encoder(tokenizer, head=head, strip=False)
        rows = cut(torch.tensor(encode(text)), window, head)[:, 1:]
        expected = sum(len(tokenizer.convert_ids_to_tokens(i)) for i in rows.flatten().tolist())
        found = predicted_bytes(text, ends(encode, text), window, len(head))
        assert abs(found - expected) <= most * len(rows)  # an é may lie across an edge
    assert len(rows) == len(encode(text)) // width


def test_bits_per_byte_are_of_the_same_text_for_any_tokenizer(tmp_path):
    whole, fewer = (byte_level(ByteLevel(add_prefix_space=False), size) for size in (600, 300))
    model = with_rows(llama(), whole)
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    part, cache = (
        Perplexity(Text(str(tmp_path / "text.txt")), [16, 32], tokens=320),
        Cache(tmp_path),
    )
    same = part.per_byte(whole, cache)
    assert (same.tokens, same.per_byte(fewer, cache)) == (None, same)
    plain, bits, other = (
        each.measure("text", Candidate(model, tokenizer, cache, None, 4))
        for each, tokenizer in ((part, whole), (same, whole), (same, fewer))
    )
    assert set(bits.metrics) == {"text/bits_per_byte_16", "text/bits_per_byte_32"}
    for window in (16, 32):
        counts = bits.windows[f"text/bits_per_byte_{window}"]
        told = plain.windows[f"text/token_perplexity_{window}"]
        assert {key: counts[key] for key in told} == told
        perplexity = plain.metrics[f"text/token_perplexity_{window}"]
        expected = math.log2(perplexity) * counts["predicted"] / counts["bytes"]
        assert bits.metrics[f"text/bits_per_byte_{window}"] == pytest.approx(expected)
        more = other.windows[f"text/bits_per_byte_{window}"]
        assert more["predicted"] > counts["predicted"]
        assert more["bytes"] == pytest.approx(counts["bytes"], rel=0.15)  # but for the last window
    assert sum(map(len, part.reads("text", whole, cache))) == 320
    with pytest.raises(
        ValueError, match=r"^suite\.perplexity\.tokens=64 and .*\.characters=9 both"
    ):
        Perplexity(part.text, [32], tokens=64, characters=9)
