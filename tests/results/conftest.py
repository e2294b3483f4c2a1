"""One made-up result that has everything."""

import pytest

from pruning.results.environment import environment
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
