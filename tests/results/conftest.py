"""One made-up result that has everything, and a study of results that differ."""

import json
import re
from dataclasses import replace

import pytest

from pruning.results.result import (
    Block,
    Evaluation,
    Latencies,
    Latency,
    Memory,
    Params,
    Result,
    Speedup,
)
from pruning.results.result import write as write_result
from pruning.system.environment import environment

LONG, ACC = "wiki/text/token_perplexity_2048", "quick/arc_easy/acc"
PARTS = ("attention", "ffn", "mlp.up_proj")
NASTY = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>&\""


@pytest.fixture
def result() -> Result:
    accuracy = {"quick/arc_easy/acc": 0.5, "quick/arc_easy/acc_stderr": 0.08}
    perplexity = "quick/text/token_perplexity_512"
    return Result(
        name="smollm2-135m-ziplm-local-1.25x-65d9b084",
        study="frontier",
        config={
            "model": {"name": "smollm2-135m", "path": "HuggingFaceTB/SmolLM2-135M", "wheel": None},
            "method": {"name": "ziplm"},
            "speedup": 1.25,
        },
        speedup=Speedup(1.25, 1.31, 1.247, [{"aim": 1.25, "predicted": 1.31, "measured": 1.247}]),
        latency=Latencies(
            Latency(812.5, 830.2, 3, [812.5, 811.1, 834.6]),
            Latency(651.6, 660.4, 3, [651.6, 661.2, 650.4]),
            "prefill",
            4,
            128,
        ),
        params=Params(134_515_008, 101_234_567, 0.7526),
        evaluation=Evaluation(accuracy | {perplexity: 22.0186}, accuracy | {perplexity: 31.4159}),
        seconds={"load": 2.5, "evaluate": 80.1, "total": 312.7},
        memory=Memory(3.21, None),
        allocation=[Block(0, 9, 3, 1536), Block(1, 0, 0, 1024), Block(2, 6, 2, 0)],
        environment=environment(),
        command="python launch.py speedup=1.25",
    )


def job(study, result, method, target, reached, long, acc, seed=0, **changed):
    """Write a result and its allocation; return it."""
    name = re.sub(r"[^\w.]+", "-", f"{method}-{target}-{seed}")
    groups = {"model": {"name": "m"}, "method": {"name": method}, "hardware": {"name": "local"}}
    run = replace(
        result,
        name=name,
        config=groups | {"seed": seed, "speedup": target},
        speedup=Speedup(target, target + 0.01, reached, []),
        evaluation=Evaluation(
            {LONG: 20.0, ACC: 0.6, f"{ACC}_stderr": 0.02},
            {LONG: long, ACC: acc, f"{ACC}_stderr": 0.03},
        ),
        command=f"python launch.py method={method} speedup={target} seed={seed}",
    )
    run = replace(run, **changed)
    write_result(run, study / name / "result.json")
    sites = {f"block.{i}.{part}": {"of": 8, "keep": [*range(i)]} for i in (0, 8) for part in PARTS}
    (study / name / "allocation.json").write_text(json.dumps(sites))
    return run


@pytest.fixture
def varied(result, tmp_path):
    """Write a study of six results: two seeds, one not finite, one estimated, one elsewhere."""
    home = tmp_path / "study"
    job(home, result, "ziplm", 1.5, 1.49, 40.0, 0.5)
    job(home, result, "ziplm", 1.5, 1.51, 44.0, 0.34, seed=1)
    job(home, result, "ziplm", 2.0, 2.02, 90.0, 0.35)
    job(home, result, "depth", 1.5, 1.52, None, 0.3)
    other = result.environment | {"threads": 64, "packages": {"torch": "1.0"}}
    job(home, result, NASTY, 1.5, 1.3, 95.0, 0.3, environment=other)
    guess = Speedup(2.0, 2.0, None, [], "estimated")
    job(home, result, "magnitude", 2.0, 0, 200.0, 0.28, speedup=guess, command="")
    return home
