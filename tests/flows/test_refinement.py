"""Custom and refined models: means over seeds, paired differences, and what the page says of them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from i2am.analysis.experiments.refinement import CUSTOM, DIFFERENCE, REFINED, compare_models
from i2am.flows.experiments.paper.refinement import refinement_section
from i2am.flows.experiments.refinement import SHIPPED, SHIPPED_TABLES, refinement_tables
from i2am.storage.errors import NotFound


def models(refined: list[float], seeds: int = 3) -> pl.DataFrame:
    rows = [
        {"model": model, "seed": seed, "score": "fid", "direction": None, "level": None, "value": value}
        for model, values in ((CUSTOM, [3.0, 1.0, 2.0]), (REFINED, refined))
        for seed, value in zip(range(seeds), values, strict=False)
    ]
    return pl.DataFrame(rows, schema_overrides={"direction": pl.String, "level": pl.String})


def section(table: pl.DataFrame) -> str:
    shipped = {name: pl.read_parquet(SHIPPED / f"{name}.parquet") for name in SHIPPED_TABLES}
    return refinement_section(shipped | {"refinement": table}).verdict


def test_differences_are_paired_by_seed() -> None:
    table = compare_models(models([2.5, 0.5, 1.5]))
    rows = {row["model"]: row for row in table.iter_rows(named=True)}
    assert (rows[CUSTOM]["value"], rows[REFINED]["value"]) == (2.0, 1.5)
    assert rows[CUSTOM]["low"] < rows[CUSTOM]["high"]
    same = rows[DIFFERENCE]  # models differ by the same at every seed: no spread is left
    assert [same[name] for name in ("value", "low", "high", "count")] == [-0.5, -0.5, -0.5, 3]
    assert section(table) == "3 seeds of each model: with the loss FID better."


def test_what_is_not_clear_is_called_undecided_and_one_seed_has_no_interval() -> None:
    assert "FID undecided" in section(compare_models(models([4.0, 0.5, 1.9])))
    assert "FID worse" in section(compare_models(models([4.0, 1.5, 2.9])))
    alone = compare_models(models([4.0], seeds=1))
    assert alone["low"].to_list() == [None] * 3
    assert section(alone).endswith("no score was measured.")


def test_a_seed_of_one_model_alone_does_not_count() -> None:
    table = compare_models(models([2.0, 1.0]))
    assert set(table["count"]) == {2}
    np.testing.assert_allclose(table.filter(model=CUSTOM)["value"], [2.0])


def test_the_shipped_results_hold_three_seeds_of_both_models() -> None:
    shipped = {name: pl.read_parquet(SHIPPED / f"{name}.parquet") for name in SHIPPED_TABLES}
    assert set(shipped["refinement"]["model"]) == {CUSTOM, REFINED, DIFFERENCE}
    assert shipped["refinement"]["count"].min() >= 3
    assert shipped["refinement_curves"].group_by("model", "seed").len().height >= 6
    last = shipped["checkpoints"].filter(pl.col("step") == pl.col("step").max())
    again = compare_models(last)
    assert again.equals(shipped["refinement"])


def test_a_folder_without_runs_is_refused(tmp_path) -> None:
    with pytest.raises(NotFound, match="no runs of custom and refined models in .*python -m i2am"):
        refinement_tables(tmp_path)
