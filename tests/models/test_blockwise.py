from dataclasses import replace

import pytest
import torch

from pruning.data.batch import Batch, cut, pack, pad
from pruning.data.bos import Bos
from pruning.models.blockwise import embed, predict, run_block
from pruning.models.sites import blocks
from tests.helpers.families import ENCODERS, EVERY, FAMILIES, reader
from tests.helpers.tiny import padded_batches, word_tokenizer

TYPES = ("token_type_ids",)
DOCUMENTS = [" ".join(f"w{(7 * d + k) % 125}" for k in range(3 + 2 * d)) for d in range(20)]


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_blocks_one_by_one_give_the_model_s_logits(family):
    model = EVERY[family]()
    layers = list(blocks(model))
    for batch in padded_batches(2):
        state = embed(model, batch)
        for index, block in enumerate(blocks(model)):
            state.advance(index, block)
        expected = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        if family in FAMILIES:  # a prediction for every real token, not for every row
            expected = expected[batch.mask.bool()]
        # the same operations on other shapes of a matrix product: float32 rounding only
        found = predict(model, batch, state.hidden)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.1
    assert list(blocks(model)) == layers


def test_a_call_can_be_repeated_from_any_block():
    model = FAMILIES["mistral"]()
    state = embed(model, padded_batches(1)[0])
    entered = state.hidden
    with torch.no_grad():
        first = state.advance(0, blocks(model)[0])
        assert torch.equal(run_block(blocks(model)[0], entered, state.calls[0]), first)


def test_pack_joins_shuffled_documents_and_loses_no_token():
    tokenizer = word_tokenizer()
    tokens = {i for text in DOCUMENTS for i in tokenizer(text).input_ids}
    lengths = {text: tokenizer(text).input_ids for text in DOCUMENTS}
    packed = pack(plain(tokenizer), DOCUMENTS, sequence=16, tokens=100, seed=3)
    assert packed.ids.shape == (7, 16)  # the least rows that hold 100 tokens
    assert packed.mask.all()
    assert set(packed.ids.flatten().tolist()) <= tokens
    stream = packed.ids.flatten().tolist()
    while stream:  # whole documents, only the last one cut
        text = next((t for t, ids in lengths.items() if ids == stream[: len(ids)]), None)
        if text is None:
            assert any(ids[: len(stream)] == stream for ids in lengths.values())
            break
        stream = stream[len(lengths.pop(text)) :]
    assert len(lengths) < len(DOCUMENTS)


def plain(tokenizer):
    return Bos.auto.encoder(tokenizer, "bos")


def padded(encode, documents, sequence, tokens, seed):
    return pad(cut(encode, documents, sequence, seed), tokens, filler=0)


@pytest.mark.parametrize("make", [pack, padded])
def test_the_order_of_the_text_depends_on_the_seed_alone(make):
    once, again, other = (
        make(plain(word_tokenizer()), DOCUMENTS, 16, 100, seed) for seed in (3, 3, 4)
    )
    assert once.digest() == again.digest() != other.digest()


def test_pack_cuts_one_long_document_at_random_places():
    text = " ".join(f"w{k}" for k in range(120))
    packed = pack(plain(word_tokenizer()), [text], sequence=10, tokens=60, seed=0)
    assert packed.ids.shape == (6, 10)
    starts = (packed.ids[:, 0] - 3).tolist()
    assert all(start % 10 == 0 for start in starts)
    assert len(set(starts)) == 6
    assert sorted(starts) != [0, 10, 20, 30, 40, 50]  # not only the beginning of the book
    assert torch.equal(packed.ids - packed.ids[:, :1], torch.arange(10).expand(6, 10))


def test_pad_puts_one_document_in_a_row():
    tokenizer = word_tokenizer()
    rows = padded(plain(tokenizer), DOCUMENTS, sequence=16, tokens=90, seed=3)
    assert rows.tokens >= 90
    assert rows.tokens - int(rows.mask[-1].sum()) < 90
    known = [tokenizer(text).input_ids[:16] for text in DOCUMENTS]
    for ids, mask in zip(rows.ids, rows.mask, strict=True):
        length = int(mask.sum())
        assert ids[:length].tolist() in known
        assert mask[:length].all()
        assert not mask[length:].any()
    assert rows.ids.shape[1] == int(rows.mask.sum(1).max()) == 16


def test_rows_of_pairs_come_back_from_a_batch():
    """With types and labels, through `of`, `take` and `rows`; padding is told from the token 0."""
    rows = [
        {
            "input_ids": torch.tensor([7, 0, 9][:length]),
            "token_type_ids": torch.tensor([0, 1, 1][:length]),
            "labels": torch.tensor(length % 2),
        }
        for length in (3, 1, 2)
    ]
    batch = Batch.from_rows(rows, filler=5)
    assert batch.ids.tolist() == [[7, 0, 9], [7, 5, 5], [7, 0, 5]]
    assert batch.tokens == 6
    for taken, expected in ((batch.rows(), rows), (batch.take(slice(1, 3)).rows(), rows[1:])):
        for row, other in zip(taken, expected, strict=True):
            assert row.keys() == other.keys()
            assert all(torch.equal(row[name], other[name]) for name in row)
    assert set(batch.inputs(torch.device("cpu"))) == {"input_ids", "attention_mask", *TYPES}
    others = [replace(batch, types=batch.types * 0), replace(batch, labels={})]
    assert len({batch.digest(), *(other.digest() for other in others)}) == 3


@torch.no_grad()
def test_the_second_text_of_a_pair_is_known_by_its_types():
    model = ENCODERS["bert"]()
    plain = padded_batches(1)[0]
    batch = replace(plain, types=plain.mask * (torch.arange(plain.ids.shape[1]) > 3))
    state = embed(model, batch)
    for index, block in enumerate(blocks(model)):
        state.advance(index, block)
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": batch.types}
    expected = model(**inputs).logits
    torch.testing.assert_close(predict(model, batch, state.hidden), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, model(batch.ids, batch.mask).logits, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ENCODERS)
def test_a_reader_predicts_two_places_a_row_and_never_padding(family):
    model, batch = reader(family), padded_batches(1)[0]
    assert not batch.mask.all()
    state = embed(model, batch)
    for index, block in enumerate(blocks(model)):
        state.advance(index, block)
    found = predict(model, batch, state.hidden).softmax(-1)
    out = model(input_ids=batch.ids, attention_mask=batch.mask)
    rows = zip(batch.mask.sum(1), torch.arange(len(batch.ids)), strict=True)
    for real, row in rows:
        for logits, side in ((out.start_logits, 0), (out.end_logits, len(batch.ids))):
            expected = logits[row, :real].softmax(-1)
            torch.testing.assert_close(found[side + row, :real], expected, rtol=1e-4, atol=1e-6)
            assert not found[side + row, real:].any()


def test_split_keeps_rows_and_use():
    batch = padded_batches(3, rows=5)[2]
    parts = batch.split(2)
    assert [len(part.ids) for part in parts] == [2, 2, 1]
    assert all(part.held_out for part in parts)
    assert torch.equal(torch.cat([part.ids for part in parts]), batch.ids)
    assert sum(part.tokens for part in parts) == batch.tokens
