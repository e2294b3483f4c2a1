"""Which results are worth their speed, against brute force."""

import random
from dataclasses import replace

import pytest

from pruning.results.pareto import pareto
from pruning.results.result import Evaluation, Speedup

LONG, ACC = "wiki/text/token_perplexity_2048", "quick/arc_easy/acc"


@pytest.mark.parametrize("seed", range(5))
def test_pareto_is_what_brute_force_finds(result, seed):
    draw = random.Random(seed)
    runs = [
        replace(
            result,
            name=str(i),
            config={"model": {"name": draw.choice("mn")}, "hardware": {"name": "local"}},
            speedup=Speedup(2.0, 2.0, draw.randint(8, 24) / 10, []),
            evaluation=Evaluation(
                {LONG: 20, ACC: 0.6},
                {LONG: draw.choice([None, *range(15, 40)]), ACC: draw.randint(3, 7) / 10},
            ),
        )
        for i in range(30)
    ]
    for metric, dense in ((LONG, 20), (ACC, 0.6)):
        expected = set()
        for run in runs:
            value = run.evaluation.pruned[metric]
            rivals = [(1.0, dense)] + [
                (other.speedup.measured, other.evaluation.pruned[metric])
                for other in runs
                if other.config == run.config and other.evaluation.pruned[metric] is not None
            ]
            if value is not None and not any(
                faster >= run.speedup.measured
                and (score <= value if metric == LONG else score >= value)
                and (faster > run.speedup.measured or score != value)
                for faster, score in rivals
            ):
                expected.add(run.name)
        assert pareto(runs, metric) == expected
        assert 0 < len(expected) < len(runs)
