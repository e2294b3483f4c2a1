"""The multiple-choice knapsack under structured SPDY (ZipLM, arXiv:2302.04089, section 3.3)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Row = Float[np.ndarray, " _"]  # one value per level


def knapsack(
    loss: Sequence[Row], ms: Sequence[Row], budget: float, buckets: int = 10_000
) -> list[int] | None:
    """Choose one level per site with the least summed loss whose summed ms is at most `budget`.

    Exact on times rounded *up* to budget / buckets, so that no choice exceeds the budget: by
    dynamic programming over sites, D[b] = min over levels s of D_before[b - t_s] + loss_s. Returns
    None when even the fastest levels do not fit. Ties go to the earlier level.
    """
    if budget <= 0:
        return None
    times = [np.ceil(np.asarray(row) / budget * buckets - 1e-9).astype(np.int64) for row in ms]
    D = np.zeros(buckets + 1)
    taken = []
    for row, time in zip(loss, times, strict=True):
        best = np.full(buckets + 1, np.inf)
        level = np.full(buckets + 1, -1, dtype=np.int32)
        for s, (cost, t) in enumerate(zip(row, time, strict=True)):
            if t > buckets:
                continue
            candidate = D[: buckets + 1 - t] + cost
            better = candidate < best[t:]
            best[t:][better] = candidate[better]
            level[t:][better] = s
        D = best
        taken.append(level)
    if not np.isfinite(D[buckets]):
        return None
    choice, b = [], buckets
    for level, time in zip(reversed(taken), reversed(times), strict=True):
        s = int(level[b])
        choice.append(s)
        b -= int(time[s])
    return choice[::-1]
