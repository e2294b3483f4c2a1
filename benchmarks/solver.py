"""How much faster is the blocked greedy OBS than one rank-1 update per column? One JSON line.

    python benchmarks/solver.py [--rows 576] [--columns 1536] [--repetitions 3]

All versions remove every column of the same layer in float64 and must agree on the order. The
product is the time of the flops that the blocked version cannot avoid. Ratios are min, median, max.
"""

import argparse
import json
import statistics
import time

import torch
from torch import Tensor

from pruning.solver.obs import Units, damped_, greedy


def rank_one(W: Tensor, H: Tensor, in_place: bool) -> list[int]:
    """Remove every column by Algorithm 1 of arXiv:2302.04089: rank-1 updates of all W and inv(H).

    As the equations read, the products are matrices that are then subtracted; `in_place` uses the
    one BLAS call (GER) that makes no such matrix.
    """
    W, Hinv = W.clone(), torch.cholesky_inverse(torch.linalg.cholesky(H))
    alive = torch.ones(len(H), dtype=torch.bool)
    order = []
    for _ in range(len(H)):
        score = torch.where(alive, W.square().sum(0) / Hinv.diagonal(), torch.inf)
        j = int(score.argmin())
        column, row = W[:, j].clone(), Hinv[j].clone()
        if in_place:
            W.addr_(column / row[j], row, alpha=-1)
            Hinv.addr_(row / row[j], row, alpha=-1)
        else:
            W -= torch.outer(column, row / row[j])
            Hinv -= torch.outer(row, row / row[j])
        W[:, j] = 0
        Hinv[j, j] = 1
        alive[j] = False
        order.append(j)
    return order


def main() -> None:
    """Measure both in turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=576)
    parser.add_argument("--columns", type=int, default=1536)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    rows, columns = arguments.rows, arguments.columns
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    X = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64) @ mixing
    H, damp = X.T @ X / len(X), 0.01
    W = torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    greedy(W, H, Units(steps=columns // 8), damp)  # warm-up
    versions = {
        "blocked": lambda: greedy(W, H, damp=damp).order.tolist(),
        "rank_one": lambda: rank_one(W, damped_(H.clone(), damp), in_place=False),
        "rank_one_in_place": lambda: rank_one(W, damped_(H.clone(), damp), in_place=True),
        "product": lambda: H @ H,  # 2 columns^3 flop, which the blocked version cannot avoid
    }
    times: dict[str, list[float]] = {name: [] for name in versions}
    orders = {}
    for _ in range(arguments.repetitions):
        for name, call in versions.items():
            start = time.perf_counter()
            orders[name] = call()
            times[name].append(time.perf_counter() - start)
    line = {
        "benchmark": "solver",
        "rows": rows,
        "columns": columns,
        "threads": torch.get_num_threads(),
        **{f"{name}_s": round(statistics.median(seconds), 3) for name, seconds in times.items()},
        "same_order": orders["blocked"] == orders["rank_one"] == orders["rank_one_in_place"],
    }
    for name in ("rank_one", "rank_one_in_place"):
        ratios = [n / b for n, b in zip(times[name], times["blocked"], strict=True)]
        spread = [round(f(ratios), 2) for f in (min, statistics.median, max)]
        line[f"{name}_over_blocked"] = spread
    print(json.dumps(line))


if __name__ == "__main__":
    main()
