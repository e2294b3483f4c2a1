"""What only a GPU can show, in ten minutes. One JSON file per part, and one JSON line.

    python benchmarks/gpu.py [--out outputs/gpu] [--parts tests,tables-llama2-7b,...] [--rehearse] \
        [overrides of the default job]

The shapes are those of published models, the weights are random: no time here depends on weights.
Every part is a process with a time limit of its own, and leaves what it has, so that one that fails
or takes too long costs the others nothing:

- tests             the tests marked gpu
- tables-SHAPE      latency tables of prefill and decode, and how well each predicts 8 allocations
- slimgpt-llama2-7b SlimGPT to 20 %: seconds and peak memory of every stage
- ziplm-llama2-7b   ZipLM to 1.5x, 16 blocks of the shape, and the speedup that is measured
- job               launch.py with its defaults and the overrides

`--rehearse` does the same on small shapes, on whatever device is there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from latency_prediction import predict
from shapes import LLAMA2_7B
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pruning.calibration.calibration import CalibrationData
from pruning.composition import compose
from pruning.data.batch import Batch
from pruning.job.profile import file_name
from pruning.latency.timer import speedup
from pruning.methods.method import PruningContext
from pruning.models.loaded import LoadedModel
from pruning.system.cache import Cache
from pruning.system.environment import GIB, machine
from pruning.system.files import write_text
from pruning.system.job import Job
from pruning.system.stopwatch import Stopwatch

SHAPES: dict[str, dict[str, Any]] = {  # as the config.json of each says
    "llama2-7b": LLAMA2_7B,
    "llama3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
}
SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
LIMITS = {  # seconds; on one H200 they take about two thirds
    "tests": 120,
    "tables-llama2-7b": 150,
    "tables-llama3.1-8b": 150,
    "slimgpt-llama2-7b": 180,
    "ziplm-llama2-7b": 240,
    "job": 120,
}
BLOCKS = {"ziplm-llama2-7b": 16}  # of 32: its stages take as long for one as for another
HERE = Path(__file__).parent


class Day:
    """What the parts of one day share."""

    def __init__(self, out: Path, rehearse: bool, blocks: int | None):
        self.out, self.rehearse, self.blocks = out, rehearse, blocks
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        self.card = torch.cuda.get_device_name().split()[-1].lower() if cuda else "cpu"

    def config(self, shape: str) -> LlamaConfig:
        """Return the config of a shape, or a small one of the same proportions."""
        given = SHAPES[shape] | (SMALL if self.rehearse else {})
        if self.blocks:
            given["num_hidden_layers"] = self.blocks
        return LlamaConfig(**given, architectures=["LlamaForCausalLM"])

    def hasty(self) -> list[str]:
        """Return what makes timings short that do not matter."""
        quick = ["noise=null", "tolerance=0.5", "repetitions=2"]
        return [f"hardware.{each}" for each in quick] if self.rehearse else []

    def note(self, part: str, **values: Any) -> None:
        """Add values to the file of a part, at once."""
        file = self.out / f"{part}.json"
        before = json.loads(file.read_text()) if file.is_file() else {"environment": machine()}
        write_text(json.dumps(before | values, indent=1), file)


def tables(day: Day, shape: str) -> None:
    """Write the latency tables of a shape, and what they predict."""
    where = day.out / "shapes" / shape
    day.config(shape).save_pretrained(where)
    length, prompts = (32, 2) if day.rehearse else (2048, 1)
    settings = {"prefill": (prompts, length), "decode": (16, length // 2)}
    for phase, (batch, sequence) in settings.items():
        experiment = compose(
            [
                "model=local",
                f"model.path={where}",
                f"model.name={shape}",
                "model.dtype=bfloat16",
                f"hardware.phase={phase}",
                f"hardware.batch={batch}",
                f"hardware.sequence_length={sequence}",
                *day.hasty(),
                f"cache={day.out / 'cache'}",
            ]
        )
        start = time.perf_counter()
        table, said = predict(experiment, 2 if day.rehearse else 8, seed=0)
        table.write(day.out / file_name(shape, day.card, table))
        day.note(f"tables-{shape}", **{phase: said | {"seconds": time.perf_counter() - start}})


class Meter(Stopwatch):
    """A stopwatch that notes the peak of the device's memory in every stage, too."""

    def __init__(self, day: Day, part: str):
        super().__init__()
        self.day, self.part, self.peaks = day, part, dict[str, float]()

    @contextmanager
    def __call__(self, stage: str) -> Generator[None, None, None]:
        """Count what happens inside to `stage`, and write it down."""
        cuda = self.day.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        with super().__call__(stage):
            yield
            if cuda:
                torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / GIB if cuda else 0.0
        self.peaks[stage] = max(self.peaks.get(stage, 0.0), peak)
        seconds = {name: round(spent, 1) for name, spent in self.seconds.items()}
        peaks = {name: round(peak, 1) for name, peak in self.peaks.items()}
        self.day.note(self.part, seconds=seconds, peak_gib=peaks)


@torch.no_grad()
def forward(model: PreTrainedModel, batches: list[Batch]) -> float:
    """Return the seconds of one pass over the text without the head."""
    start = time.perf_counter()
    for batch in batches:
        model.base_model(input_ids=batch.ids.to(model.device), use_cache=False)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def prune(day: Day, method: str, shape: str) -> None:
    """Prune random weights of a shape, calibrated on 128 x 2048 random tokens."""
    part = f"{method}-{shape}"
    meter, config = Meter(day, part), day.config(shape)
    rows, length = (40, 32) if day.rehearse else (128, 2048)
    torch.manual_seed(0)
    with meter("load"), torch.device(day.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.randint(3, config.vocab_size, (rows, length)).split(4)
    batches = [Batch(i, torch.ones_like(i), n % 5 == 4) for n, i in enumerate(ids)]
    unit = min(forward(model, batches) for _ in range(2))
    day.note(part, tokens=rows * length, blocks=config.num_hidden_layers, forward_s=round(unit, 2))
    aims = {"slimgpt": ["speedup=null", "method.ratio=0.2"], "ziplm": ["speedup=1.5"]}
    where = [f"method={method}", f"hardware.sequence_length={length}"]
    experiment = compose([*where, *aims[method], *day.hasty()])
    cache = Cache(str(day.out / "cache" / part))
    job = Job(day.out / part, day.device, cache, meter, seed=0)
    with meter("profile"):
        prunable, hardware = experiment.method.sites(model), experiment.hardware
        if day.rehearse:  # times of shapes this small are noise
            hardware = compose(["hardware=flops", f"hardware.sequence_length={length}"]).hardware
        table = hardware.profile(model, prunable, cache, experiment.runtime)
    text = CalibrationData(experiment.calibration, batches, lambda tokens: batches)
    dense = LoadedModel(model, None)  # type: ignore[arg-type]  # no text, no tokenizer
    given = table, experiment.search, experiment.speedup
    plan = experiment.method.plan(PruningContext(dense, text, *given, job))
    if experiment.speedup is None:
        shapes = plan.fixed_shapes
    else:
        shapes = plan.choose(table.budget(experiment.speedup))
    assert shapes is not None
    with meter("prune"):
        pruned, _ = plan.build(shapes)
    how = experiment.hardware.measurement(model, experiment.runtime)
    assert how is not None
    with meter("measure"):
        measured, doubt = speedup(*how.compare(model, pruned))
    day.note(part, predicted=table.dense / table.total(shapes) if table.has(shapes) else None)
    kept = pruned.num_parameters() / model.num_parameters()
    day.note(part, measured=measured, stderr=doubt, parameters=kept)


def command(day: Day, part: str, overrides: list[str]) -> list[str]:
    """Return what a part runs."""
    if part == "tests":
        chosen = ["-m", "gpu", "tests/test_cuda.py", "tests/latency/test_profile.py"]
        how = ["-q", "-n", "4", "-o", "filterwarnings=default"]
        return [sys.executable, "-m", "pytest", *chosen, *how]
    if part == "job":
        where = f"hydra.run.dir={day.out / 'job'}"
        return [sys.executable, "launch.py", "tracker=none", where, *overrides]
    own = [sys.executable, str(HERE / "gpu.py"), "--one", part, "--out", str(day.out)]
    if day.rehearse:
        return [*own, "--rehearse"]
    blocks = day.blocks or BLOCKS.get(part)
    return own + (["--blocks", str(blocks)] if blocks else [])


def run(day: Day, part: str, overrides: list[str]) -> str:
    """Run a part within its limit; its output goes to a file. Return how it ended."""
    where = dict(os.environ)
    where["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), where.get("PYTHONPATH", "")])
    with (day.out / f"{part}.log").open("w") as log:
        start = time.perf_counter()
        try:
            done = subprocess.run(
                command(day, part, overrides),
                cwd=HERE.parent,
                env=where,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=LIMITS[part],
            )
            ended = "done" if done.returncode == 0 else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {LIMITS[part]} s"
        day.note(part, ended=ended, part_s=round(time.perf_counter() - start, 1))
    return ended


def main() -> None:
    """Run the parts, and print how each ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--parts", default=",".join(LIMITS), help="separated by commas")
    parser.add_argument("--blocks", type=int, help="of each model, fewer than its own")
    parser.add_argument("--rehearse", action="store_true", help="small shapes, any device")
    parser.add_argument("--one", help="in this process; for this script's use")
    arguments, overrides = parser.parse_known_args()
    day = Day(arguments.out.resolve(), arguments.rehearse, arguments.blocks)
    day.out.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        kind, _, shape = arguments.one.partition("-")
        tables(day, shape) if kind == "tables" else prune(day, kind, shape)
        return
    if not (arguments.rehearse or torch.cuda.is_available()):
        parser.error("there is no CUDA device here: give --rehearse for small shapes on a CPU")
    ended = {part: run(day, part, overrides) for part in arguments.parts.split(",")}
    print(json.dumps({"benchmark": "gpu", "device": day.card, "parts": ended}))


if __name__ == "__main__":
    main()
