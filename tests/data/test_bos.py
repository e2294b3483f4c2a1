"""The beginning-of-sequence token at the head of rows and windows, wherever text is cut."""

import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig

from pruning.calibration.calibration import Calibration, Target, Weight
from pruning.data.bos import Bos, prepends
from pruning.data.text import Text
from pruning.evaluation.parts import Perplexity
from pruning.evaluation.suite import Suite
from pruning.recovery.rows import rows_of
from pruning.search.text import evaluation_text
from pruning.system.cache import Cache
from tests.helpers.families import GATED, random_model
from tests.helpers.tiny import job_with, word_tokenizer
from tests.recovery.test_stage import training

BOS, END = 1, 2
DOCUMENTS = [" ".join(f"w{(7 * d + k) % 120}" for k in range(9 + d)) for d in range(24)]


def tokenizer(begins: bool, ends: bool = False):
    """Make a tokenizer with a beginning-of-sequence token, which it adds or not."""
    made = word_tokenizer()
    made.bos_token = "<s>"
    single = ("<s> " if begins else "") + "$A" + (" <unk>" if ends else "")
    if begins or ends:
        special = [("<s>", BOS), ("<unk>", END)]
        made.backend_tokenizer.post_processor = TemplateProcessing(single, None, special)
    return made


def ids(text: str) -> list[int]:
    return [int(word[1:]) + 3 for word in text.split()]


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def path(tmp_path):
    given = tmp_path / "text.tsv"
    given.write_text("text\n" + "\n".join(DOCUMENTS) + "\n")
    return str(given)


def calibration(path: str, bos: Bos, pack: bool = True, sequence: int = 8) -> Calibration:
    given = (Text(path), 400 if pack else 150, sequence, 5, 0.25, pack, Weight.none, Target.local)
    return Calibration("tiny", *given, bos=bos)


def test_who_puts_the_token_in_front_of_a_text():
    assert prepends(tokenizer(True))
    assert prepends(tokenizer(True, ends=True))
    assert not prepends(tokenizer(False))
    assert not prepends(tokenizer(False, ends=True))
    assert not prepends(word_tokenizer())  # has no such token at all


@pytest.mark.parametrize(
    ("begins", "bos", "head", "front"),
    [
        (True, Bos.auto, [BOS], []),
        (False, Bos.auto, [], []),  # SmolLM2, gpt2, Qwen: as it always was
        (True, Bos.always, [BOS], []),
        (False, Bos.always, [BOS], []),
        (True, Bos.text, [], [BOS]),
        (False, Bos.text, [], []),
        (True, Bos.never, [], []),
    ],
)
@pytest.mark.parametrize("ends", [False, True])
def test_rows_of_calibration(path, cache, begins, bos, head, front, ends):
    back = [END] if ends else []
    packed = calibration(path, bos).batches(tokenizer(begins, ends), cache, seed=3)
    rows = torch.cat([batch.ids for batch in packed]).tolist()
    order = torch.randperm(len(DOCUMENTS), generator=torch.Generator().manual_seed(3)).tolist()
    texts = [DOCUMENTS[index] for index in order]
    stream = [i for text in texts for i in [*front, *ids(text), *back]]
    width = 8 - len(head)
    expected = [head + stream[k : k + width] for k in range(0, len(stream) - width + 1, width)]
    assert rows == expected[:50]
    assert len(rows) == min(50, len(expected))
    assert len(rows) * 8 == 400  # the token is one of `calibration.tokens`
    given = calibration(path, bos, pack=False).batches(tokenizer(begins, ends), cache, seed=3)
    padded = [row["input_ids"].tolist() for batch in given for row in batch.rows()]
    one_each = [[*head, *front, *ids(text), *back][:8] for text in texts]
    assert padded == one_each[: len(padded)]


def test_no_token_to_begin_with(path, cache):
    for bos in (Bos.auto, Bos.text, Bos.never):
        assert calibration(path, bos).batches(word_tokenizer(), cache, seed=0)
    with pytest.raises(ValueError, match=r"^calibration\.bos=always: .* give auto or never"):
        calibration(path, Bos.always).batches(word_tokenizer(), cache, seed=0)
    with pytest.raises(
        ValueError, match=r"^calibration\.sequence_length=1 is .* calibration\.bos=never"
    ):
        calibration(path, Bos.auto, sequence=1).batches(tokenizer(True), cache, seed=0)


@pytest.mark.parametrize("sequence", [2, 3, 5, 8, 100])
def test_pieces_for_the_search_keep_the_token(path, cache, sequence):
    batches = calibration(path, Bos.auto).batches(tokenizer(True), cache, seed=0)
    held = [row for batch in batches if batch.held_out for row in batch.ids.tolist()]
    pieces = [row for b in evaluation_text(batches, 10_000, [sequence]) for row in b.ids.tolist()]
    width = min(sequence, 8) - 1
    expected = [[BOS, *row[k : k + width]] for row in held for k in range(1, 8, width)]
    assert sorted(pieces) == sorted(expected)
    few = evaluation_text(batches, 12, [sequence])
    assert 12 <= sum(batch.tokens for batch in few) < 12 + min(sequence, 8)


def test_rows_of_a_recovery(path, cache):
    given = calibration(path, Bos.auto)
    suite = Suite("none", None, tasks={}, labelled={}, limit=None, batch_size=1)
    recovery = training(max_length=16, steps=4, batch_size=2)
    rows = rows_of(recovery, given, None, suite, tokenizer(True), job_with(cache))
    assert len(rows) == 8
    for row in rows:
        assert row["input_ids"][0] == BOS
        assert BOS not in row["input_ids"][1:]


@torch.no_grad()
@pytest.mark.parametrize(
    ("begins", "bos", "head", "first", "begun"),
    [
        (True, Bos.auto, [BOS], [], "every"),
        (False, Bos.auto, [], [], "none"),
        (False, Bos.always, [BOS], [], "every"),
        (True, Bos.text, [], [BOS], "first"),
        (True, Bos.never, [], [], "none"),
    ],
)
def test_perplexity_is_that_of_a_plain_loop(path, cache, begins, bos, head, first, begun):
    model = random_model(LlamaConfig(**GATED, max_position_embeddings=64))
    text = Perplexity(Text(path, distinct=False), [16, 9], 300, bos)
    suite = Suite("tiny", text, tasks={}, labelled={}, limit=None, batch_size=2)
    found = suite.evaluate(model, tokenizer(begins), cache)
    stream = [*first, *(i for document in DOCUMENTS for i in ids(document))][:300]
    for window in (16, 9):
        width = window - len(head)
        losses = []
        for k in range(len(stream) // width):
            row = torch.tensor([head + stream[k * width : (k + 1) * width]])
            losses.append(model(input_ids=row, labels=row).loss.item())
        key = f"tiny/text/token_perplexity_{window}"
        expected = math.exp(sum(losses) / len(losses))
        assert found.metrics[key] == pytest.approx(expected, rel=1e-5)
        said = {"windows": len(losses), "predicted": len(losses) * (window - 1), "bos": begun}
        assert found.windows[key] == said
    again = suite.evaluate(model, tokenizer(begins), cache)  # from the cache
    assert (again.windows, again.metrics) == (found.windows, found.metrics)


def test_another_token_or_place_of_it_is_another_evaluation(path, cache):
    model = random_model(LlamaConfig(**GATED, max_position_embeddings=64))

    def measured(bos: Bos, tokenizer):
        suite = Suite("t", Perplexity(Text(path), [16], 300, bos), {}, {}, None, 1)
        found = suite.evaluate(model, tokenizer, cache)
        return found.metrics["t/text/token_perplexity_16"], found.read["text"]

    other = tokenizer(False)
    other.bos_token = "<pad>"
    given = [
        measured(Bos.auto, tokenizer(True)),
        measured(Bos.never, tokenizer(True)),
        measured(Bos.text, tokenizer(True)),
        measured(Bos.always, other),
    ]
    assert len({number for number, _ in given}) == 4
    assert len({read for _, read in given}) == 4  # pages do not compare them
    assert measured(Bos.always, tokenizer(False)) == given[0]
