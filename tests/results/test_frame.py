"""Results as a pandas table: a row each, ready to be grouped."""

from dataclasses import replace

import pandas
import pytest

from pruning.results.frame import frame, load_results
from pruning.results.result import Evaluation, Speedup
from pruning.results.tables import table

LONG, ACC = "wiki/text/token_perplexity_2048", "quick/arc_easy/acc"


def test_every_result_is_a_row_to_be_grouped(varied):
    rows = load_results(varied)
    assert sorted(rows["name"]) == sorted(path.parent.name for path in varied.glob("*/result.json"))
    means = rows.groupby(["label", "target"])[f"pruned/{LONG}"].mean()
    assert means["ziplm", 1.5] == 42  # of 40 and 44
    assert means["ziplm", 2.0] == 90
    assert means.isna()["depth", 1.5]  # it was not finite
    assert (rows[f"dense/{ACC}"] == 0.6).all()
    guess = rows[rows["method"] == "magnitude"].iloc[0]
    assert (guess["basis"], guess["speedup"], pandas.isna(guess["measured"])) == (
        "estimated", 2.0, True,
    )  # fmt: skip
    assert load_results(varied.parent)["name"].tolist() == rows["name"].tolist()  # below it, too


def test_columns_of_numbers_hold_numbers_where_all_are_missing(result):
    empty = replace(
        result,
        config={"model": {"name": "m"}, "method": {"name": "flop"}, "hardware": None},
        speedup=Speedup(None, None, 1.2, []),
        evaluation=Evaluation({LONG: None}, {LONG: None}),
    )
    rows = frame([empty])
    for column in ("target", "predicted", f"pruned/{LONG}", f"dense/{LONG}"):
        assert rows[column].dtype == "float64"
        assert rows[column].isna().all()
    assert rows["seed"].isna().all()


def test_no_result_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"holds no result\.json of a finished job"):
        load_results(tmp_path)


def test_seeds_stay_integers_in_the_csv_beside_a_result_without(result):
    from pruning.results.points import gather

    runs = [
        replace(result, name=str(seed), config=result.config | {"seed": seed}) for seed in (3, None)
    ]
    lines = table(gather(runs)).splitlines()
    seeds = [dict(zip(lines[0].split(","), line.split(","), strict=True))["seed"] for line in lines]
    assert seeds == ["seed", "3", ""]
