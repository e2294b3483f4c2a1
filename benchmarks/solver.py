"""How much faster is the blocked greedy OBS than one rank-1 update per column? One JSON line.

    python benchmarks/solver.py [--rows 576] [--columns 1536] [--repetitions 3]

Both versions remove every column of the same layer in float64 and must agree on the order. The
floor is the time of the flops that the blocked version cannot avoid, at the speed of one large
float64 matrix product on this machine.
"""

import argparse
import json
import statistics
import time

import torch
from torch import Tensor

from pruning.methods.obs import damped, greedy


def rank_one(W: Tensor, H: Tensor) -> list[int]:
    """Remove every column by Algorithm 1 of arXiv:2302.04089 as written: whole W and inv(H)."""
    W, Hinv = W.clone(), torch.cholesky_inverse(torch.linalg.cholesky(H))
    alive = torch.ones(len(H), dtype=torch.bool)
    order = []
    for _ in range(len(H)):
        score = torch.where(alive, W.square().sum(0) / Hinv.diagonal(), torch.inf)
        j = int(score.argmin())
        row = Hinv[j].clone()
        W.addr_(W[:, j] / row[j], row, alpha=-1)
        Hinv.addr_(row / row[j], row, alpha=-1)
        W[:, j] = 0
        Hinv[j, j] = 1
        alive[j] = False
        order.append(j)
    return order


def seconds(call, *args) -> tuple[float, object]:
    """Time one call."""
    start = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - start, result


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
    H = damped(X.T @ X / len(X), 0.01)
    W = torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    greedy(W, H, steps=columns // 8)  # warm-up
    blocked, naive, product = [], [], []
    for _ in range(arguments.repetitions):
        spent, removal = seconds(greedy, W, H)
        blocked.append(spent)
        spent, order = seconds(rank_one, W, H)
        naive.append(spent)
        product.append(seconds(torch.matmul, H, H)[0])
    same = order == removal.order.tolist()  # type: ignore[attr-defined]
    flop = 2 * columns**3
    floor = flop / (2 * columns**3 / statistics.median(product))
    medians = [statistics.median(times) for times in (blocked, naive)]
    print(
        json.dumps(
            {
                "benchmark": "solver",
                "rows": rows,
                "columns": columns,
                "threads": torch.get_num_threads(),
                "blocked_s": round(medians[0], 3),
                "rank_one_s": round(medians[1], 3),
                "ratio": round(medians[1] / medians[0], 2),
                "ratio_spread": [
                    round(f(n / b for n, b in zip(naive, blocked, strict=True)), 2)
                    for f in (min, max)
                ],
                "floor_s": round(floor, 3),
                "same_order": same,
            }
        )
    )


if __name__ == "__main__":
    main()
