"""Readers: the best span against brute force, SQuAD's metrics against its rules written down."""

import json
import math
import random
import re
import string
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruning.composition import compose
from pruning.data.questions import Question
from pruning.evaluation.answers import answers, judge, span
from pruning.evaluation.part import Candidate
from pruning.evaluation.parts import QABenchmark
from pruning.evaluation.suite import Suite
from pruning.system.cache import Cache
from tests.helpers.families import ENCODERS, reader
from tests.helpers.tiny import word_tokenizer

CONTEXT = " ".join(f"w{(7 * i) % 120}" for i in range(40))
ROWS = [
    {"question": f"w{i} w{50 + i}", "context": CONTEXT, "answers": [f"w{(7 * i) % 120}"]}
    for i in range(9)
]


def suite(tmp_path, rows=ROWS, **options) -> Suite:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"path": str(path), "max_length": 16, "stride": 5, "max_answer_length": 3} | options
    asked = {"mine": QABenchmark(**settings)}
    return Suite("tiny", None, tasks={}, labelled={}, limit=None, batch_size=4, questions=asked)


def official(answer: str, truths: list[str]) -> tuple[float, float]:
    """Follow the rules of SQuAD: lower case, no punctuation, no articles, then words.

    Of SQuAD 2.0: "" stands for no answer, and agrees with nothing else.
    """
    truths = truths or [""]

    def words(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    def f1(truth: str) -> float:
        ours, theirs = words(answer), words(truth)
        if not ours or not theirs:
            return float(ours == theirs)
        common = sum((Counter(ours) & Counter(theirs)).values())
        return 2 * common / (len(ours) + len(theirs)) if common else 0.0

    return max(float(words(answer) == words(t)) for t in truths), max(map(f1, truths))


def test_exact_match_and_f1_follow_the_official_rules():
    truths = ["The Denver Broncos", "Broncos of Denver", "a team"]
    for answer in ("denver broncos!", "an Denver", "the team", "Panthers", "", "Denver, of, of"):
        exact, f1 = official(answer, truths)
        found = judge(Question("", "", truths, 0), answer)
        assert found == {"exact_match": exact, "f1": pytest.approx(f1)}
    for answer, right in (("", 1.0), ("Broncos", 0.0)):
        assert official(answer, []) == (right, right)
        assert judge(Question("", "", [], -1), answer) == {"exact_match": right, "f1": right}


def test_the_best_span_is_that_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        starts, ends = torch.randn(2, 12, generator=generator)
        allowed = torch.rand(12, generator=generator) > 0.4
        places = [i for i in range(12) if allowed[i]]
        pairs = [(i, j) for i in places for j in places if i <= j < i + 3]
        best = max(pairs, key=lambda pair: float(starts[pair[0]] + ends[pair[1]]))
        first, last, score = span(starts, ends, allowed, 3)
        assert (first, last) == best
        assert score == pytest.approx(float(starts[first] + ends[last]))


class Doubting(torch.nn.Module):
    """A reader whose scores of the token in front of all are higher by half of `doubt` each."""

    def __init__(self, model, doubt: float):
        super().__init__()
        self.model, self.doubt = model, doubt
        self.config, self.device = model.config, model.device

    def forward(self, **inputs):
        out = self.model(**inputs)
        out.start_logits[:, 0] += self.doubt / 2
        out.end_logits[:, 0] += self.doubt / 2
        return out


@torch.no_grad()
@pytest.mark.parametrize("family", ENCODERS)
def test_answers_are_the_best_spans_of_all_windows(family, tmp_path):
    """Windows cut by hand, read one at a time; every word is a token here."""
    model, tokenizer = reader(family), word_tokenizer()
    if family == "bert":
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    model.get_input_embeddings().weight.mul_(10)
    words, said, doubts = CONTEXT.split(), [], []
    for row in ROWS:
        found, none = [], []
        start, asked, size = 0, row["question"].split(), 14
        while True:
            part = words[start : start + size]
            ids = tokenizer.convert_tokens_to_ids(asked + part)
            types = {"token_type_ids": torch.tensor([[0, 0] + [1] * len(part)])}
            out = model(input_ids=torch.tensor([ids]), **(types if family == "bert" else {}))
            none.append(float(out.start_logits[0, 0] + out.end_logits[0, 0]))
            for i in range(len(part)):
                for j in range(i, min(i + 3, len(part))):
                    score = out.start_logits[0, 2 + i] + out.end_logits[0, 2 + j]
                    found.append((float(score), " ".join(part[i : j + 1])))
            if start + size >= len(words):
                break
            start += size - 5
        score, text = max(found)
        said.append(text)
        doubts.append((score - min(none), score - max(none)))
    assert len(set(said)) > 1
    one = suite(tmp_path)
    task, cache = one.questions["mine"], Cache(tmp_path / "cache")
    asked = task.read(cache, "here")
    candidate = Candidate(model, tokenizer, cache, None, 4)
    assert answers("mine", task, asked, candidate) == said
    doubting = replace(task, unanswerable=True)
    assert all(least > most for least, most in doubts)
    for doubt in (-1e3, *(sum(of) / 2 for of in doubts), 1e3):  # windows of one disagree at each
        candidate.model = Doubting(model, doubt)
        rather = ["" if doubt > of else text for (of, _), text in zip(doubts, said, strict=True)]
        assert answers("mine", doubting, asked, candidate) == rather
    scores = [official(a, row["answers"]) for a, row in zip(said, ROWS, strict=True)]
    metrics = one.evaluate(model, tokenizer, cache).metrics
    for metric, values in zip(("exact_match", "f1"), zip(*scores, strict=True), strict=True):
        mean = sum(values) / len(values)
        assert metrics[f"tiny/mine/{metric}"] == pytest.approx(mean)
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
        assert metrics[f"tiny/mine/{metric}_stderr"] == pytest.approx(error)


@torch.no_grad()
def test_questions_with_and_without_an_answer_have_means_of_their_own(tmp_path):
    rows = [row | {"answers": []} if i < 4 else row for i, row in enumerate(ROWS)]
    one = suite(tmp_path, rows, unanswerable=True)
    tokenizer, cache = word_tokenizer(), Cache(tmp_path / "cache")
    model = reader("bert")
    model.get_input_embeddings().weight.mul_(10)
    task = one.questions["mine"]
    asked = task.read(cache, "here")
    said = answers("mine", task, asked, Candidate(model, tokenizer, cache, None, 4))
    scores = [official(a, row["answers"])[1] for a, row in zip(said, rows, strict=True)]
    found = one.evaluate(model, tokenizer, cache).metrics
    assert found["tiny/mine/NoAns_f1"] == pytest.approx(sum(scores[:4]) / 4)
    assert found["tiny/mine/HasAns_f1"] == pytest.approx(sum(scores[4:]) / 5)
    assert found["tiny/mine/f1"] == pytest.approx(sum(scores) / 9)


def test_a_classifier_is_no_reader(tmp_path):
    with pytest.raises(
        ValueError, match=r"^suite='tiny': suite\.questions\.mine measures ForQuestionAnsw"
    ):
        suite(tmp_path).evaluate(ENCODERS["bert"](), word_tokenizer(), Cache(tmp_path / "cache"))


@pytest.mark.slow
def test_the_thousand_questions_of_the_wheel():
    """Each answered rightly, and wrongly in ways that the rules forgive or count in part."""
    given = compose(["model=minilm-l6", "task=squad", "suite=squad_1000"])
    cache = Cache(Path(given.cache))
    asked = given.suite.questions["squad"].read(cache, "suite.questions.squad")
    draw = random.Random(0)
    ours, theirs = [], []
    for question in asked:
        words = question.context.split()
        start = draw.randrange(len(words))
        some = " ".join(words[start : start + draw.randrange(1, 9)])
        answer = draw.choice([*question.answers, f"The {question.answers[0]}.", some])
        ours.append(judge(question, answer))
        theirs.append(official(answer, question.answers))
    assert len(asked) == 1000
    for metric, values in zip(("exact_match", "f1"), zip(*theirs, strict=True), strict=True):
        mean = sum(score[metric] for score in ours) / 1000
        assert 0.5 < mean < 0.95
        assert mean == pytest.approx(sum(values) / 1000, abs=1e-6)
