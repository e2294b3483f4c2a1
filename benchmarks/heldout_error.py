"""Does the weight update generalise? Error on text that the solver never saw. One JSON line.

    python benchmarks/heldout_error.py TEXT [overrides of the command line]

For FFN down projections of blocks 5, 15 and 25, a fifth of the channels is removed by the Wanda
score, from calibration sets of 12k, 49k and 197k tokens of TEXT. The relative output error of each
update is measured on 49k other tokens of TEXT: no update, fixed ridges (of the mean diagonal, as
published, and of each input's energy, as here), and the ridge that our solver chooses, which may
look at the calibration tokens only.
"""

import json
import sys

import torch

from pruning.calibration.moment import Accumulator, Split
from pruning.composition import compose
from pruning.data.batch import pack
from pruning.models.blockwise import embed
from pruning.models.sites import Kind, blocks, projection, sites, weight
from pruning.solver.obs import Units, by_wanda, change, energy, least_squares
from pruning.solver.ordering import HeldOut, choose_ridge
from pruning.system.cache import Cache
from pruning.system.progress import track

BLOCKS = (5, 15, 25)
COUNTS = (12_288, 49_152, 196_608)  # calibration tokens
OTHER = 49_152  # tokens that judge
REMOVED = 0.2
FIXED = (0.01, 0.1, 0.5)
SEQUENCE = 512
BATCH = 4


def moments(model, batches, site_of) -> dict:
    """Return {(block, tokens): Split} and {(block, "other"): moment}."""
    states = [embed(model, batch) for batch in batches]
    seen = {}
    for site in site_of.values():
        projection(model, site).register_forward_pre_hook(
            lambda _, args: seen.__setitem__("x", args[0])
        )
    splits = {}
    for index in track(range(max(site_of) + 1), "blocks"):
        sums = {}
        for number, state in enumerate(states):
            state.advance(index, blocks(model)[index])
            if index not in site_of:
                continue
            X = seen["x"].reshape(-1, site_of[index].columns)
            before = number * SEQUENCE * BATCH
            parts = [(n, number % 5 == 4) for n in COUNTS if before < n]
            for part in parts if before < COUNTS[-1] else [("other", False)]:
                if part not in sums:
                    sums[part] = Accumulator(X.shape[1], X.device)
                sums[part].add_(X, torch.ones(len(X)))
        if index in site_of:
            for n in COUNTS:
                fit, held = sums[n, False], sums[n, True]
                share = held.weight / (fit.weight + held.weight)
                splits[index, n] = Split(fit.mean(), held.mean(), share)
            splits[index, "other"] = sums["other", False].mean()
    return splits


@torch.no_grad()
def main() -> None:
    """Print the table to stderr and one JSON line to stdout."""
    text, *overrides = sys.argv[1:]
    experiment = compose(
        ["calibration=text", f"calibration.text.path={text}", "tracker=none", *overrides]
    )
    cache = Cache(experiment.cache)
    model, tokenizer = experiment.model.load(cache, experiment.hardware.open())
    assert experiment.calibration.text is not None
    documents = experiment.calibration.text.documents(cache, "text")
    encode = experiment.calibration.bos.encoder(tokenizer, "calibration.bos")
    rows = pack(encode, documents, SEQUENCE, COUNTS[-1] + OTHER, experiment.seed)
    site_of = {s.block: s for s in sites(model) if s.kind is Kind.FFN and s.block in BLOCKS}
    splits = moments(model, rows.split(BATCH), site_of)
    table = []
    for block, site in site_of.items():
        W = weight(projection(model, site)).double()
        other = splits[block, "other"].H.double()
        for n in COUNTS:
            split = splits[block, n]
            H = split.all.H.double()
            keep = torch.ones(site.columns, dtype=torch.bool)
            keep[by_wanda(W, H, Units(steps=round(REMOVED * site.columns))).order] = False
            mean = float(H.diagonal().mean())
            shifted = {
                f"{d:g} of the mean": H + d * mean * torch.eye(len(H), dtype=H.dtype) for d in FIXED
            }

            def judge(A, ridge, W=W, keep=keep, other=other) -> float:
                dW = change(W, keep, least_squares(W, A, keep, ridge))
                return energy(dW, other) / energy(W, other)

            ridge = choose_ridge(HeldOut(site, W, split), [keep], experiment.method.ridges)  # type: ignore[attr-defined]
            row = {
                "block": block,
                "tokens": n,
                "no_update": judge(H, float("inf")),
                **{name: judge(A, 0.0) for name, A in shifted.items()},
                **{f"{d:g} of each": judge(H, d) for d in FIXED},
                "ours": judge(H, ridge),
                "ridge": ridge,
            }
            fixed = [v for k, v in row.items() if " of " in k]
            row["over_best_fixed"] = row["ours"] / min(fixed) - 1
            table.append(row)
            print(json.dumps(row), file=sys.stderr)
    print(
        json.dumps(
            {
                "benchmark": "heldout_error",
                "never_above_no_update": all(r["ours"] <= r["no_update"] for r in table),
                "worst_over_best_fixed": max(r["over_best_fixed"] for r in table),
                "rows": table,
            }
        )
    )


if __name__ == "__main__":
    main()
