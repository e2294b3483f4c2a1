"""Digests of tensors, batches and rows: two that differ in anything have two."""

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch

from pruning.calibration.moments import Moments
from pruning.data.batch import Batch, digest_rows
from pruning.models.loaded import LoadedModel
from pruning.models.sites import sites
from pruning.system.cache import Cache, digest_tensors
from tests.helpers.families import llama
from tests.helpers.tiny import text, word_tokenizer

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
]
SHAPES = [(), (0,), (1,), (16,), (4, 4), (2, 8), (8, 2), (1, 16), (2, 2, 4), (0, 3), (3, 0)]


def draw(shape, dtype, seed=0):
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype)


def one(tensor, name="x"):
    return digest_tensors([(name, tensor)])


def test_every_shape_and_dtype_of_the_same_bytes_has_a_digest_of_its_own():
    found = {}
    for shape, dtype in product(SHAPES, DTYPES):  # all of zeros: the bytes tell nothing
        found[one(torch.zeros(shape, dtype=dtype))] = shape, dtype
    assert len(found) == len(SHAPES) * len(DTYPES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_element_and_the_name_count_and_the_strides_do_not(shape, dtype):
    tensor = draw(shape, dtype)
    assert one(tensor) == one(tensor.clone())
    if tensor.ndim == 2:
        assert one(tensor) == one(tensor.T.contiguous().T)
    assert one(tensor) != one(tensor, "y")
    for index in range(tensor.numel()):
        other = tensor.clone()
        other.view(-1)[index] = ~other.view(-1)[index] if dtype == torch.bool else 7
        assert one(other) != one(tensor)


def test_bits_count_and_not_what_they_are_equal_to():
    assert one(torch.tensor(0.0)) != one(torch.tensor(-0.0))
    assert one(torch.tensor(float("nan"))) == one(torch.tensor(float("nan")))


def test_boundaries_between_tensors_count():
    whole = torch.arange(12)
    lists = [[whole[:cut], whole[cut:]] for cut in range(13)]
    lists += [[whole], [whole, whole[:0]], [whole[:0], whole], [whole[:4], whole[4:8], whole[8:]]]
    keys = [digest_tensors(("x", tensor) for tensor in tensors) for tensors in lists]
    same = {(a, b) for a, b in combinations(range(len(lists)), 2) if keys[a] == keys[b]}
    assert same == {(0, 15), (12, 14)}  # cut at either end: an empty one and the whole


def test_a_batch_is_its_shape_its_parts_and_its_use():
    ids = torch.arange(24).view(2, 12)
    types = ids % 2
    batch = Batch(ids, torch.ones_like(ids), types=types, labels={"labels": torch.tensor([1, 0])})
    others = [
        replace(batch, held_out=True),
        replace(batch, types=None),
        replace(batch, labels={}),
        replace(batch, labels={"start_positions": batch.labels["labels"]}),
        replace(batch, labels={"labels": batch.labels["labels"].float()}),
        replace(batch, types=None, labels={"types": ids % 2} | batch.labels),
        replace(batch, ids=batch.mask, mask=batch.ids),
        replace(batch, ids=ids.view(4, 6), mask=batch.mask.view(4, 6), types=types.view(4, 6)),
        replace(batch, ids=ids.int()),
        batch.take(slice(0, 1)),
    ]
    assert len({batch.digest(), *(other.digest() for other in others)}) == 1 + len(others)
    assert replace(batch, ids=ids.clone()).digest() == batch.digest()


def test_rows_end_where_they_end():
    ids = torch.arange(10)
    lists = [
        [{"input_ids": ids}],
        [{"input_ids": ids[:4]}, {"input_ids": ids[4:]}],
        [{"input_ids": ids[:5]}, {"input_ids": ids[5:]}],
        [{"input_ids": ids[:5], "labels": ids[5:]}],
        [{"input_ids": ids[:5], "token_type_ids": ids[5:]}],
        [{"input_ids": ids[5:]}, {"input_ids": ids[:5]}],
        [{"input_ids": ids.int()}],
        [],
    ]
    assert len({digest_rows(rows) for rows in lists}) == len(lists)
    turned = [{"labels": ids[5:], "input_ids": ids[:5]}]  # no order within a row
    assert digest_rows(turned) == digest_rows(lists[3])


def test_moments_of_long_and_of_short_sequences_are_two(tmp_path):
    """The same 256 tokens as 4 x 64 and as 16 x 16."""
    model, cache = llama(), Cache(tmp_path)
    ids = torch.randint(3, 128, (2, 256), generator=torch.Generator().manual_seed(1))
    found = {}
    for sequence in (64, 16):
        batches = []
        for index, row in enumerate(ids):
            cut = row.view(-1, sequence)
            batches.append(Batch(cut, torch.ones_like(cut), held_out=index == 1))
        given = batches, text(), sites(model), cache
        loaded = LoadedModel(model, word_tokenizer())
        found[sequence] = Moments.collect(loaded, *given)[sites(model)[-1]].fit.H
    assert len(list(tmp_path.glob("moments/*/"))) == 2
    apart = (found[64] - found[16]).norm() / found[64].norm()
    assert apart > 0.05  # of other tokens before them, other inputs
