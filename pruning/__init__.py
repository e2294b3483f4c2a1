"""Inference-aware structured pruning of language models; nothing is imported before it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning.api import Pruned, load, profile, prune
    from pruning.calibration.calibration import Calibration, Wikipedia
    from pruning.data.labelled import Labelled
    from pruning.data.questions import Questions
    from pruning.data.text import Text
    from pruning.evaluation.parts import (
        ClassificationBenchmark,
        LmEvalTask,
        Perplexity,
        QABenchmark,
    )
    from pruning.evaluation.suite import Suite
    from pruning.latency.cost_models import File, Proxy, Roofline
    from pruning.latency.local import Local
    from pruning.methods.baselines import Flap, Magnitude, Random, WandaSp
    from pruning.methods.dense import Dense
    from pruning.methods.depth import Depth
    from pruning.methods.flop.flop import FLOP
    from pruning.methods.slimgpt import SlimGPT
    from pruning.methods.svd import SVD
    from pruning.methods.ziplm import ZipLM
    from pruning.models.shrink import shrink_
    from pruning.recovery.recipe import Lora, Loss
    from pruning.recovery.recovery import LocalFirst, LocalReconstruction, NoRecovery, Training
    from pruning.results.frame import load_results
    from pruning.results.result import Result
    from pruning.runtimes.llama_cpp import LlamaCpp
    from pruning.runtimes.onnxruntime import OnnxRuntime
    from pruning.runtimes.openvino import OpenVINO
    from pruning.runtimes.torch_compile import TorchCompile
    from pruning.runtimes.torch_eager import TorchEager
    from pruning.runtimes.vllm import VLLM
    from pruning.search.search import Calibrated, NoSearch, Schedule, Spdy, Uniform
    from pruning.tasks.task import Classification, QuestionAnswering

_HOMES = {
    "pruning.api": ("prune", "profile", "load", "Pruned"),
    "pruning.models.shrink": ("shrink_",),
    "pruning.results.frame": ("load_results",),
    "pruning.results.result": ("Result",),
    "pruning.methods.ziplm": ("ZipLM",),
    "pruning.methods.slimgpt": ("SlimGPT",),
    "pruning.methods.flop.flop": ("FLOP",),
    "pruning.methods.svd": ("SVD",),
    "pruning.methods.baselines": ("Flap", "Magnitude", "Random", "WandaSp"),
    "pruning.methods.depth": ("Depth",),
    "pruning.methods.dense": ("Dense",),
    "pruning.latency.local": ("Local",),
    "pruning.latency.cost_models": ("File", "Roofline", "Proxy"),
    "pruning.runtimes.torch_eager": ("TorchEager",),
    "pruning.runtimes.onnxruntime": ("OnnxRuntime",),
    "pruning.runtimes.openvino": ("OpenVINO",),
    "pruning.runtimes.llama_cpp": ("LlamaCpp",),
    "pruning.runtimes.torch_compile": ("TorchCompile",),
    "pruning.runtimes.vllm": ("VLLM",),
    "pruning.calibration.calibration": ("Calibration", "Wikipedia"),
    "pruning.data.text": ("Text",),
    "pruning.data.labelled": ("Labelled",),
    "pruning.data.questions": ("Questions",),
    "pruning.search.search": ("Calibrated", "Spdy", "Uniform", "Schedule", "NoSearch"),
    "pruning.recovery.recipe": ("Loss", "Lora"),
    "pruning.recovery.recovery": ("Training", "LocalReconstruction", "LocalFirst", "NoRecovery"),
    "pruning.evaluation.suite": ("Suite",),
    "pruning.evaluation.parts": (
        "Perplexity",
        "LmEvalTask",
        "ClassificationBenchmark",
        "QABenchmark",
    ),
    "pruning.tasks.task": ("Classification", "QuestionAnswering"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "FLOP",
    "SVD",
    "VLLM",
    "Calibrated",
    "Calibration",
    "Classification",
    "ClassificationBenchmark",
    "Dense",
    "Depth",
    "File",
    "Flap",
    "Labelled",
    "LlamaCpp",
    "LmEvalTask",
    "Local",
    "LocalFirst",
    "LocalReconstruction",
    "Lora",
    "Loss",
    "Magnitude",
    "NoRecovery",
    "NoSearch",
    "OnnxRuntime",
    "OpenVINO",
    "Perplexity",
    "Proxy",
    "Pruned",
    "QABenchmark",
    "QuestionAnswering",
    "Questions",
    "Random",
    "Result",
    "Roofline",
    "Schedule",
    "SlimGPT",
    "Spdy",
    "Suite",
    "Text",
    "TorchCompile",
    "TorchEager",
    "Training",
    "Uniform",
    "WandaSp",
    "Wikipedia",
    "ZipLM",
    "load",
    "load_results",
    "profile",
    "prune",
    "shrink_",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pruning' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
