"""Tiny encoders in a place, and jobs that prune them."""

import json
from pathlib import Path
from typing import Any

from transformers import BertConfig

from tests.helpers.families import random_model
from tests.helpers.place import WORDS, Place
from tests.helpers.tiny import word_tokenizer

OF_DECODERS = ("calibration.text.path=", "suite.perplexity", "suite=wikitext")


def write_rows(path: Path, rows: list[Any]) -> None:
    """Write a row a line, as JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_encoders(place: Place) -> tuple[list[dict], list[dict]]:
    """Save a tiny encoder with three classes, one without a head, and rows; return the rows."""
    sizes = {"hidden_size": 128, "intermediate_size": 1024, "num_attention_heads": 4}
    config = BertConfig(vocab_size=WORDS + 3, num_hidden_layers=3, num_labels=3, **sizes)
    bert: Any = random_model(config)
    bert.save_pretrained(place.root / "bert")
    bert.bert.save_pretrained(place.root / "headless")
    for name in ("bert", "headless"):
        word_tokenizer(WORDS).save_pretrained(place.root / name)
    words = (place.root / "text.txt").read_text().split()
    rows = [
        {"text": " ".join(words[9 * i : 9 * i + 5 + i % 7]), "label": i % 3} for i in range(433)
    ]
    write_rows(place.root / "sentences.jsonl", rows)
    asked = [
        {"question": words[i], "context": " ".join(words[i : i + 30]), "answers": [words[i + 1]]}
        for i in range(0, 1200, 12)
    ]
    write_rows(place.root / "questions.jsonl", asked)
    return rows, asked


def encoder_arguments(place: Place, kind: str, *overrides: str, outputs: str) -> list[str]:
    """Return the command line of a job on one of them.

    Of the `classifier`, or of the one without a head, trained for a `task` of classes or as a
    `reader` first; overrides come behind those of the kind.
    """
    root, bare = place.root, "subset:null,wheel:null,sha256:null"
    rows = root / "sentences.jsonl"
    gone = (*OF_DECODERS, "calibration=text")
    given = [f"model.path={root / 'headless'}", "calibration=task", "calibration.batch=8"]
    if kind == "classifier":
        suite = f"++suite.labelled={{mine:{{path:{rows},columns:[text]}}}}"
        given = [f"model.path={root / 'bert'}", "calibration.pack=false", suite]
        given += ["suite=none", "suite.limit=40", f"calibration.text.path={rows}"]
        gone = OF_DECODERS
    elif kind == "task":
        source = f"{{path:{rows},columns:[text],{bare}}}"
        given += ["task=sst2", f"task.train={source}", "task.classes=3", "suite=glue"]
        given += [f"suite.labelled.sst2={source}", "task.epochs=0.1"]
    else:
        source = f"{{path:{root / 'questions.jsonl'},{bare}}}"
        given += ["task=squad", f"task.train={source}", "task.epochs=0.1", "suite=squad"]
        given += [f"suite.questions.squad={source}", "task.max_length=24", "task.stride=8"]
    whole = place.arguments(*given, *overrides, outputs=outputs)
    own = whole[: len(whole) - len(given) - len(overrides)]
    return [word for word in own if not word.startswith(gone)] + given + [*overrides]
