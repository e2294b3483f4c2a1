"""Does a streamed job stay within a memory limit, and end as a resident one? One JSON line.

    python benchmarks/streaming.py [--shape smollm2-1.7b] [--blocks 24] [--methods ziplm,slimgpt] \
        [--limit 2.5e9] [--out outputs/streaming] [--alone] [overrides of the job]

A checkpoint of a published shape is written with random weights, one block after the other. Each
method prunes it to 1.5x by a table of few levels, in a process of its own that the system gives no
more than `--limit` bytes (RLIMIT_DATA: all memory that is written), and once more with all weights
in memory and no limit, unless `--alone`. Resident bytes are sampled all the while, files that are
mapped among them. Neither shares a cache with the other.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from shapes import LLAMA2_7B

SHAPES: dict[str, dict[str, Any]] = {  # as the config.json of each says
    "smollm2-1.7b": {
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "llama2-7b": LLAMA2_7B,
    "small": {  # whose weights take more than their solver
        "vocab_size": 512,
        "hidden_size": 1024,
        "intermediate_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 8,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "tie_word_embeddings": True,
    },
}
HASTY = {  # few candidates, whose solving is what takes long
    "": ["method.ridges=[0.1]"],
    "ziplm": ["search.anchors=[0.5]", "search.balances=[1.0]", "search.tokens=256"],
    "slimgpt": [],
}
SHARES = (1.0, 0.75, 0.5, 0.0)  # levels of attention
WIDTHS = (1.0, 0.5, 0.0)  # and of FFNs
EVERY = 0.02  # seconds between samples


def write(shape: str, blocks: int | None, directory: Path) -> None:
    """Write a checkpoint of random weights, a shard per block, and its tokenizer."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    given: dict[str, Any] = SHAPES[shape] | ({"num_hidden_layers": blocks} if blocks else {})
    config = LlamaConfig(**given, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    directory.mkdir(parents=True)
    generator, where = torch.Generator().manual_seed(0), {}
    of_files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[2] if ".layers." in name else "rest"
        of_files.setdefault(f"model-{part}.safetensors", {})[name] = parameter.shape
    for file, shapes in of_files.items():
        tensors = {
            name: torch.ones(size, dtype=torch.bfloat16)
            if "norm" in name
            else torch.empty(size, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name, size in shapes.items()
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(directory)
    write_table(config, directory / "table.json")
    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, config.vocab_size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(
        directory
    )
    drawn = torch.randint(1, config.vocab_size, (200, 300), generator=generator).tolist()
    lines = (json.dumps({"text": " ".join(f"w{i}" for i in line)}) + "\n" for line in drawn)
    (directory / "text.jsonl").write_text("".join(lines))


def write_table(config: Any, path: Path) -> None:
    """Write a latency table of few levels, in which time is what a level has of the parameters."""
    from pruning.latency.table import LatencyTable
    from pruning.models.shape import Heads, Width

    heads, width = config.num_attention_heads, config.intermediate_size
    parts: dict[str, Any] = {
        "attention": {Heads(round(s * heads), int(s > 0)): s for s in SHARES},
        "ffn": {Width(round(s * width)): 3 * s for s in WIDTHS},
    }
    count = config.num_hidden_layers
    setting = {"phase": "prefill", "batch": 1, "sequence": 256, "tokens": 0}
    LatencyTable(parts, 0.1, count, 1.0, 4.0 * count + 0.1, setting=setting).write(path)


class Sampler(threading.Thread):
    """Keeps the largest number of resident bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.ended = 0, threading.Event()

    def run(self) -> None:
        """Read what this process has until it ends."""
        while not self.ended.wait(EVERY):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.most = max(self.most, pages * resource.getpagesize())


def prune(method: str, model: Path, out: Path, limit: float | None, overrides: list[str]) -> None:
    """Run a job within a limit; leave what it took beside its files."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    sampler = Sampler()
    sampler.start()
    from pruning.composition import compose
    from pruning.job.job import job

    experiment = compose(
        [
            "model=local",
            f"model.path={model}",
            "model.name=random",
            "model.dtype=bfloat16",
            f"model.resident={limit is None}",
            "hardware=file",
            f"hardware.path={model / 'table.json'}",
            f"method={method}",
            "speedup=1.5",
            "calibration=text",
            f"calibration.text.path={model / 'text.jsonl'}",
            "calibration.tokens=2048",
            "calibration.sequence_length=128",
            "calibration.batch=2",
            "suite=none",
            "tracker=none",
            f"cache={out / 'cache'}",
            *HASTY[""],
            *HASTY[method],
            *overrides,
        ]
    )
    start = time.perf_counter()
    result = job(experiment, out, lambda experiment: "benchmark")
    assert result is not None
    sampler.ended.set()
    took = {
        "peak_gb": round(sampler.most / 1e9, 3),
        "seconds": round(time.perf_counter() - start, 1),
        "stages": {name: round(seconds, 1) for name, seconds in result.seconds.items()},
        "speedup": result.speedup.predicted,
    }
    (out / "took.json").write_text(json.dumps(took))


def alike(one: Path, other: Path) -> dict[str, Any]:
    """Compare what two jobs kept, and the weights of their models."""
    from pruning.models.lazily import checkpoint

    kept = [(out / "allocation.json").read_text() for out in (one, other)]
    first, second = (checkpoint(str(out / "model"), None, str(out)) for out in (one, other))
    same = first.keys() == second.keys() and kept[0] == kept[1]
    most = (
        max(
            float((first[name].read().float() - second[name].read().float()).abs().max())
            for name in first
        )
        if same
        else None
    )
    return {"same_allocation": kept[0] == kept[1], "largest_difference": most}


def main() -> None:
    """Write the checkpoint, run the jobs, and print what they took and how they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="smollm2-1.7b", choices=SHAPES)
    parser.add_argument("--blocks", type=int, help="fewer than the shape has")
    parser.add_argument("--methods", default="ziplm,slimgpt")
    parser.add_argument("--limit", type=float, default=2.5e9, help="bytes")
    parser.add_argument("--out", type=Path, default=Path("outputs/streaming"))
    parser.add_argument("--alone", action="store_true", help="no resident job beside it")
    parser.add_argument("--one", help="a job, in this process; for this script's use")
    arguments, overrides = parser.parse_known_args()
    out: Path = arguments.out.resolve()
    model = out / f"{arguments.shape}-{arguments.blocks or 'all'}"
    if arguments.one:
        method, kind = arguments.one.split("-")
        limit = arguments.limit if kind == "streamed" else None
        prune(method, model, out / f"{model.name}-{arguments.one}", limit, overrides)
        return
    if not (model / "text.jsonl").exists():
        write(arguments.shape, arguments.blocks, model)
    # the limit counts what malloc keeps of tensors that are freed: with this it gives them back
    where = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    where["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1]), where.get("PYTHONPATH", "")]
    )
    said: dict[str, Any] = {"benchmark": "streaming", "shape": model.name, "limit": arguments.limit}
    for method in arguments.methods.split(","):
        outs = {}
        for kind in ("streamed",) if arguments.alone else ("streamed", "resident"):
            one = f"{method}-{kind}"
            outs[kind] = out / f"{model.name}-{one}"
            subprocess.run([sys.executable, *sys.argv, "--one", one], env=where, check=True)
            said[one] = json.loads((outs[kind] / "took.json").read_text())
        if not arguments.alone:
            said[method] = alike(*outs.values())
    print(json.dumps(said))


if __name__ == "__main__":
    main()
