"""Fine-tuning a dense encoder: it learns, it is done once, and it goes on after a kill."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from pruning.calibration.calibration import Calibration, Target, Weight
from pruning.data.labelled import Labelled
from pruning.models.source import Attention, Dtype, Model
from pruning.system.cache import Cache
from pruning.tasks.finetune import order
from pruning.tasks.task import Classification, Task
from tests.helpers.families import bert
from tests.helpers.tiny import word_tokenizer

pytestmark = pytest.mark.job

# one word says the class; the rest says nothing
ROWS = [
    {"one": f"w{3 + i % 2} " + " ".join(f"w{(7 * i + k) % 90 + 10}" for k in range(1 + i % 5)),
     "two": f"w{i % 7 + 20}", "label": i % 2, "score": (i % 2) * 2.0 - 1}
    for i in range(64)
]  # fmt: skip


@pytest.fixture
def task(tmp_path) -> Task:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    train = Labelled(str(path), columns=["one"])
    return Classification("mine", 8, 4.0, 8, 0.01, 5, 0, train, classes=2)


def encoder():
    torch.manual_seed(0)
    config = bert().config
    config.num_labels = 2
    model = BertForSequenceClassification(config).eval()
    model.config.architectures = ["BertModel"]  # as a checkpoint without a head says
    return model


def accuracy(model, task, cache) -> float:
    rows = task.examples(word_tokenizer(), cache)
    with torch.no_grad():
        answers = [model(row["input_ids"][None]).logits.argmax() for row in rows]
    return sum(int(a == row["labels"]) for a, row in zip(answers, rows, strict=True)) / len(rows)


def test_a_new_head_is_that_of_the_tasks_seed_alone(task, tmp_path):
    """So that several seeds of a study can prune one dense model."""
    encoder().bert.save_pretrained(tmp_path / "bert")
    word_tokenizer().save_pretrained(tmp_path / "bert")
    given = Model("mine", str(tmp_path / "bert"), dtype=Dtype.float32, attention=Attention.auto)

    def head(seed: int, before: int):
        torch.manual_seed(before)
        seeded = replace(task, seed=seed)
        return given.load(Cache(tmp_path), torch.device("cpu"), seeded)[0].classifier.weight

    assert torch.equal(head(0, before=1), head(0, before=2))
    assert not torch.equal(head(0, before=1), head(1, before=1))


def test_a_model_learns_the_task_once(task, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    given = (word_tokenizer(), cache)
    taught = task.fine_tune(encoder(), *given)
    assert accuracy(taught, task, cache) > 0.95 > 0.8 > accuracy(encoder(), task, cache)
    assert not taught.training
    assert type(taught).__name__ in taught.config.architectures
    monkeypatch.setattr("pruning.tasks.finetune.Trainer", None)  # is not needed any more
    again = task.fine_tune(encoder(), *given)
    assert all(torch.equal(a, b) for a, b in zip(taught.parameters(), again.parameters()))  # noqa: B905
    assert task.fine_tune(taught, *given) is taught  # it has a head of its own
    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []


def test_a_fine_tuned_model_has_the_attention_that_was_asked_for(task, tmp_path):
    task.epochs, before, cache = 0.25, encoder(), Cache(tmp_path / "cache")
    before.set_attn_implementation("eager")
    for _ in range(2):  # trained, and found
        taught = task.fine_tune(before, word_tokenizer(), cache)
        assert taught.config._attn_implementation == "eager"


def test_weights_of_bfloat16_are_trained_in_float32(task, tmp_path, monkeypatch):
    """Steps of this size are lost in bfloat16, where 1 + 1e-4 is 1."""
    task.learning_rate = 1e-4
    before = encoder().to(torch.bfloat16)
    taught = task.fine_tune(before, word_tokenizer(), Cache(tmp_path / "cache"))
    assert taught.dtype == before.dtype == torch.bfloat16
    (saved,) = (tmp_path / "cache" / "finetune").glob("*/model.safetensors")
    gains = load_file(saved)["bert.encoder.layer.0.output.LayerNorm.weight"]
    assert gains.dtype == torch.float32
    moved = (gains - 1).abs()
    assert 0 < moved.max() < 2**-8
    assert (moved > 0).float().mean() > 0.9


def test_a_killed_training_goes_on_and_ends_the_same(task, tmp_path, monkeypatch):
    from transformers import Trainer

    whole = task.fine_tune(encoder(), word_tokenizer(), Cache(tmp_path / "whole"))
    steps = []
    step = Trainer.training_step

    def killed(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 13:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", killed)
    cache = Cache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        task.fine_tune(encoder(), word_tokenizer(), cache)
    resumed = task.fine_tune(encoder(), word_tokenizer(), cache)
    assert steps == [*range(13), *range(10, 32)]  # from the checkpoint at 10; 64 rows * 4 / 8
    for name, parameter in resumed.named_parameters():
        torch.testing.assert_close(parameter, whole.get_parameter(name))


def test_batches_are_alike_in_length_and_every_row_is_read_in_every_epoch():
    lengths = [3 + (17 * i) % 40 for i in range(1000)]
    rows = order(lengths, 2.5, 8, seed=0)
    assert len(rows) == 2500
    assert sorted(rows[:1000]) == sorted(rows[1000:2000]) == list(range(1000))
    assert rows[:1000] != rows[1000:2000]
    widest = [max(lengths[r] for r in rows[i : i + 8]) for i in range(0, 2496, 8)]
    shuffled = [max(lengths[(7 * r) % 1000] for r in range(i, i + 8)) for i in range(0, 1000, 8)]
    mean = sum(lengths) / len(lengths)
    assert sum(widest) / len(widest) < mean + 2 < sum(shuffled) / len(shuffled)
    assert rows == order(lengths, 2.5, 8, seed=0) != order(lengths, 2.5, 8, seed=1)


def test_numbers_that_are_not_finite_stop_training(task, tmp_path):
    model = encoder()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(
        ValueError, match=r"^task\.learning_rate=.*left the finite numbers at step 1; lower"
    ):
        task.fine_tune(model, word_tokenizer(), Cache(tmp_path / "cache"))


def test_what_counts_for_the_result_makes_another_training(task, tmp_path):
    cache = Cache(tmp_path / "cache")

    def entries() -> int:
        return sum(path.is_dir() for path in (tmp_path / "cache" / "finetune").iterdir())

    task.epochs = 0.25
    task.fine_tune(encoder(), word_tokenizer(), cache)
    assert entries() == 1
    other = deepcopy(task)
    other.save_steps, other.name = 50, "renamed"
    other.fine_tune(encoder(), word_tokenizer(), cache)
    assert entries() == 1
    other.learning_rate = 0.02
    other.fine_tune(encoder(), word_tokenizer(), cache)
    other.seed = 1
    other.fine_tune(encoder(), word_tokenizer(), cache)
    assert entries() == 3


def test_examples_are_what_the_tokenizer_gives(task, tmp_path):
    tokenizer, cache = word_tokenizer(), Cache(tmp_path / "cache")
    task.train.columns = ["one", "two"]
    for row, example in zip(ROWS, task.examples(tokenizer, cache), strict=True):
        expected = tokenizer(row["one"], row["two"], truncation=True, max_length=8)
        assert example["input_ids"].tolist() == expected["input_ids"]
        assert int(example["labels"]) == row["label"]
    task.train.label, task.classes = "score", 1
    found = task.examples(tokenizer, cache)
    assert [float(example["labels"]) for example in found] == [row["score"] for row in ROWS]
    task.classes = 2
    with pytest.raises(ValueError, match=r"^task\.train\.label='score': -1.0 is not one of 2"):
        task.examples(tokenizer, cache)


def test_the_task_calibrates(task, tmp_path):
    tokenizer, cache = word_tokenizer(), Cache(tmp_path / "cache")
    text = Calibration("task", None, 100, 99, 4, 0.25, False, Weight.none, Target.local)
    batches = text.batches(tokenizer, cache, 0, task)
    assert sum(batch.tokens for batch in batches) >= 100
    known = {(*e["input_ids"].tolist(), int(e["labels"])) for e in task.examples(tokenizer, cache)}
    for batch in batches:
        for row in batch.rows():
            assert (*row["input_ids"].tolist(), int(row["labels"])) in known
    text.tokens = 10_000
    with pytest.raises(
        ValueError, match=r"^calibration\.tokens=10000 is more .* task\.train\.path"
    ):
        text.batches(tokenizer, cache, 0, task)
