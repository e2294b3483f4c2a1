"""Questions from every form that they come in, and windows of tokens over long contexts."""

import gzip
import json

import pytest

from pruning.data.questions import Questions
from pruning.system.cache import Cache
from pruning.tasks.task import QuestionAnswering
from pruning.tasks.windows import windows
from tests.helpers.tiny import word_tokenizer

CONTEXT = " ".join(f"w{i}" for i in range(30))
ROWS = [
    {
        "question": "w100 w101",
        "context": CONTEXT,
        "answers": {"text": [a, "w0"], "answer_start": [s]},
    }
    for a, s in (("w3 w4", CONTEXT.index("w3 ")), ("w29", CONTEXT.index("w29")), ("w1", 3))
]


def source(tmp_path, rows=ROWS, **options) -> Questions:
    path = tmp_path / "questions.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return Questions(str(path), **options)


def test_the_forms_of_a_question(tmp_path):
    cache = Cache(tmp_path / "cache")
    found = source(tmp_path).read(cache, "here")
    assert [(q.text, q.context, q.answers) for q in found] == [
        (row["question"], CONTEXT, row["answers"]["text"]) for row in ROWS
    ]
    assert all(q.context[q.start :].startswith(q.answers[0]) for q in found)
    assert source(tmp_path).read(cache, "here", limit=2) == found[:2]
    one = [{**row, "answers": row["answers"]["text"][0]} for row in ROWS]
    listed = [
        {**row, "answers": [{"text": text, "answer_start": start}]}
        for row, text, start in (
            (row, row["answers"]["text"][0], row["answers"]["answer_start"][0]) for row in ROWS
        )
    ]
    for rows in (one, listed):
        again = source(tmp_path, rows).read(cache, "here")
        assert [(q.answers, q.start) for q in again] == [(q.answers[:1], q.start) for q in found]
    prompts = [
        {"doc": {"both": f"Read: {CONTEXT}\nAsk: {q.text}", "said": q.answers}} for q in found
    ]
    pattern = r"Read: (?P<context>.*)\nAsk: (?P<question>.*)"
    options = {"within": "doc", "context": "both", "answers": "said", "pattern": pattern}
    assert source(tmp_path, prompts, **options).read(cache, "here") == found


def test_what_is_wrong_is_said(tmp_path):
    cache = Cache(tmp_path / "cache")
    for options, said in (
        ({"context": "passage"}, r"^here\.context='passage' is not a column of .*answers"),
        ({"within": "doc"}, r"^here\.within='doc' is not a column of"),
        ({"pattern": "(?P<context>x)(?P<question>y)"}, r"^here\.pattern=.* does not fit 'w0 w1"),
    ):
        with pytest.raises(ValueError, match=said):
            source(tmp_path, **options).read(cache, "here")
    moved = {"text": ["w3 w4"], "answer_start": [0]}
    for answers in ({"text": [], "answer_start": []}, ["w99"], "w99", None, [], moved):
        rows = [{**ROWS[0], "answers": answers}]
        with pytest.raises(
            ValueError, match=r"^here\.answers='answers': the context of 'w100 w101'"
        ):
            source(tmp_path, rows).read(cache, "here")
        if answers in (["w99"], "w99", moved):  # an answer that is not there
            with pytest.raises(ValueError, match=r"^here\.answers='answers': the context of"):
                source(tmp_path, rows, unanswerable=True).read(cache, "here")


@pytest.mark.parametrize("column", ["question", "context"])
def test_a_question_without_its_text_is_left_out(tmp_path, caplog, column):
    cache, rows = Cache(tmp_path / "cache"), [{**ROWS[0], column: None}, *ROWS]
    assert source(tmp_path, rows).read(cache, "here") == source(tmp_path).read(cache, "here")
    assert "here: 1 rows of" in caplog.text
    for wrong, said in ((7, r"7 \(int\)"), (["w1"], r"\['w1'\] \(list\)")):
        rows = [ROWS[0], {**ROWS[1], column: wrong}]
        with pytest.raises(ValueError, match=rf"^here\.{column}='{column}': row 2 of .* {said}"):
            source(tmp_path, rows).read(cache, "here")


@pytest.mark.parametrize(
    "answers",
    [
        7,
        [7],
        [["w3"]],
        {"text": ["w3"]},
        {"text": "w3", "answer_start": [9]},
        {"text": ["w3"], "answer_start": [None]},
        [{"text": "w3"}],
        [None],
    ],
)
def test_answers_of_another_form(tmp_path, answers):
    rows = [ROWS[0], {**ROWS[1], "answers": answers}]
    with pytest.raises(ValueError, match=r"^here\.answers='answers': row 2 of .* give a text"):
        source(tmp_path, rows).read(Cache(tmp_path / "cache"), "here")


@pytest.mark.parametrize("none", [{"text": [], "answer_start": []}, None, [], "", [""]])
def test_questions_without_an_answer(tmp_path, none):
    rows = [{**ROWS[0], "answers": none}, ROWS[1]]
    first, second = source(tmp_path, rows, unanswerable=True).read(Cache(tmp_path / "c"), "here")
    assert (first.answers, first.start) == ([], -1)
    assert second.answers == ["w29", "w0"]
    for window in windows([first], word_tokenizer(), 14, 4, "here"):
        labelled = window.labelled(first)
        assert labelled["start_positions"] == labelled["end_positions"] == 0


def test_windows_cover_the_context_and_mark_the_answer(tmp_path):
    asked = source(tmp_path).read(Cache(tmp_path / "cache"), "here")
    tokenizer = word_tokenizer()
    found = list(windows(asked, tokenizer, 14, 4, "here"))
    for number, question in enumerate(asked):
        mine = [window for window in found if window.question == number]
        read = []
        for window in mine:
            ids, characters = window.row["input_ids"], window.characters
            assert len(ids) == len(characters) <= 14
            assert tokenizer.decode(ids[:2]) == question.text
            assert not characters[:2].any()
            words = [question.context[a:b] for a, b in characters[2:].tolist()]
            assert words == tokenizer.convert_ids_to_tokens(ids[2:])
            assert not read or read[-4:] == words[:4]  # the stride
            read += words[4:] if read else words
            labelled = window.labelled(question)
            first, last = int(labelled["start_positions"]), int(labelled["end_positions"])
            answer = question.answers[0].split()
            if set(answer) <= set(words):
                assert tokenizer.convert_ids_to_tokens(ids[first : last + 1]) == answer
            else:
                assert first == last == 0
        assert " ".join(read) == question.context
        assert any(window.labelled(question)["end_positions"] > 0 for window in mine)


def test_a_window_that_leaves_no_room(tmp_path):
    asked = source(tmp_path).read(Cache(tmp_path / "cache"), "here")
    with pytest.raises(
        ValueError, match=r"^here\.max_length=6: a question .* lower here\.stride=5"
    ):
        list(windows(asked, word_tokenizer(), 6, 5, "here"))


def test_the_rows_of_a_task(tmp_path):
    task = QuestionAnswering("mine", 14, 1.0, 2, 0.1, 5, 0, source(tmp_path), stride=4)
    rows = task.examples(word_tokenizer(), Cache(tmp_path / "cache"))
    assert len(rows) > len(ROWS)
    assert all({"input_ids", "start_positions", "end_positions"} <= set(row) for row in rows)
