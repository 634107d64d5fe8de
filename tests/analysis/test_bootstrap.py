"""Bootstrap intervals against literal draws, and the summary against a literal loop."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analysis.options import StudyOptions
from i2am.analysis.scores import bootstrap
from i2am.analysis.scores.bootstrap import mean_intervals
from i2am.analysis.scores.summary import KEYS, summarise
from i2am.analysis.scores.tables import SCHEMA, frame
from i2am.analysis.study.study import analyze
from i2am.storage.errors import InputError, ShapeMismatch
from tests.analysis.builders import build, layer

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def literal(values, confidence, resamples, seed):
    """Draw, average, sort, cut: one number at a time."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        chosen = [values[n] for n in rng.integers(0, len(values), len(values))]
        kept = [value for value in chosen if not np.isnan(value)]
        if kept:
            means.append(sum(kept) / len(kept))
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])


@settings(deadline=None, max_examples=30)
@given(VALUES, st.sampled_from([0.5, 0.9, 0.95]), st.integers(0, 2**20), st.booleans())
def test_equals_literal_draws(values, confidence, seed, gap):
    if gap:
        values = [*values, float("nan")]
    found = mean_intervals(np.array(values)[:, None], confidence, 200, seed)
    low, high = literal(values, confidence, 200, seed)
    np.testing.assert_allclose([found.low[0], found.high[0]], [low, high], atol=1e-9)
    assert found.count[0] == np.isfinite(values).sum()


@settings(deadline=None, max_examples=30)
@given(VALUES, st.floats(-50, 50), st.floats(0.1, 20))
def test_shift_and_scale_carry_over(values, shift, scale):
    plain = mean_intervals(np.array(values)[:, None], resamples=100)
    moved = mean_intervals(np.array(values)[:, None] * scale + shift, resamples=100)
    for name in ("mean", "low", "high"):
        np.testing.assert_allclose(getattr(moved, name), getattr(plain, name) * scale + shift, atol=1e-8)


SCIPY = [
    ([1.0, 4.0, 2.0], 0.8, (1.333333, 3.333333)),
    ([0.3, -1.2, 2.5, 0.9, 0.1, 4.0], 0.95, (-0.166667, 2.516667)),
    ([n**2 / 50 for n in range(40)], 0.9, (7.892, 12.728)),
]
"""Values, confidence, and the percentile interval of scipy.stats.bootstrap 1.17.1 with 200,000 resamples."""


@pytest.mark.parametrize(("values", "confidence", "ends"), SCIPY)
def test_equals_scipy_up_to_the_chance_of_the_draws(values, confidence, ends):
    found = mean_intervals(np.array(values)[:, None], confidence, 20_000, seed=3)
    np.testing.assert_allclose([found.low[0], found.high[0]], ends, atol=0.04 * (ends[1] - ends[0]))


def test_the_order_of_the_samples_matters_no_more_than_the_draws():
    values = np.random.default_rng(0).gamma(2, size=(30, 1))
    plain, turned = mean_intervals(values, resamples=20_000), mean_intervals(values[::-1], resamples=20_000)
    width = plain.high - plain.low
    np.testing.assert_allclose(turned.mean, plain.mean)
    np.testing.assert_allclose(turned.low, plain.low, atol=0.04 * width[0])
    np.testing.assert_allclose(turned.high, plain.high, atol=0.04 * width[0])


def test_the_mean_lies_in_the_interval_which_narrows_with_samples():
    rng = np.random.default_rng(0)
    widths = []
    for count in (10, 40, 640):
        found = mean_intervals(rng.normal(size=(count, 3)))
        assert (found.low < found.mean).all()
        assert (found.mean < found.high).all()
        widths.append((found.high - found.low).mean())
    assert widths[0] > 1.6 * widths[1] > 4 * widths[2]


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    found = mean_intervals(rng.exponential(size=(60, 400)), confidence=0.9, resamples=500)
    held = ((found.low < 1) & (found.high > 1)).mean()
    assert 0.82 < held < 0.95


def test_memory_bounds_do_not_change_the_draws(monkeypatch):
    values = np.random.default_rng(0).normal(size=(50, 2))
    whole = mean_intervals(values)
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", 1)
    np.testing.assert_allclose(mean_intervals(values).low, whole.low, rtol=1e-12)


def test_too_few_values_have_no_interval():
    found = mean_intervals([[1.0, np.nan, 5.0], [np.nan, np.nan, 5.0]])
    assert found.count.tolist() == [1, 0, 2]
    np.testing.assert_array_equal(found.mean, [1, np.nan, 5])
    np.testing.assert_array_equal(found.low, [np.nan, np.nan, 5])


@pytest.mark.parametrize(
    "wrong", [{"confidence": 0}, {"confidence": 1}, {"confidence": 95}, {"resamples": 0}]
)
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        mean_intervals([[1.0], [2.0]], **wrong)


def test_values_without_columns_are_refused():
    with pytest.raises(ShapeMismatch, match=r"\(sample, column\); got shape \(2,\)"):
        mean_intervals([1.0, 2.0])


def test_the_summary_of_a_study_says_what_its_tables_say(tmp_path):
    layers = [layer("a", gen=(8, 6), ref=(4, 3)), layer("b", gen=(4, 3), ref=(4, 3))]
    run, _ = build(tmp_path / "run.zarr", layers, steps=3, samples=("x", "y", "z"), images=True)
    result = analyze(run, tmp_path / "out", StudyOptions(figures=0, details=0))
    summary = pl.read_parquet(tmp_path / "out" / "tables" / "summary.parquet")
    scored = pl.concat([table for name, table in result.tables.items() if name != "summary"])
    for row in summary.iter_rows(named=True):
        own = scored.filter(*[pl.col(key).eq_missing(row[key]) for key in KEYS])
        assert (row["samples"], row["scored"], row["missing"]) == (3, 3, 0)
        for metric in ("imacs", "inside", "share"):
            values = own[metric].to_list()
            assert row[f"{metric}_mean"] == pytest.approx(np.mean(values))
            quartiles = [row[f"{metric}_{name}"] for name in ("q25", "median", "q75")]
            assert quartiles == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))
            if max(values) > min(values):
                low, high = literal(values, 0.95, 2000, 0)
                assert row[f"{metric}_mean_low"] == pytest.approx(low)
                assert row[f"{metric}_mean_high"] == pytest.approx(high)
    levels = summary.group_by("level", maintain_order=True).len().to_dict(as_series=False)
    assert dict(zip(levels["level"], levels["len"], strict=True))["head"] == 4


def test_a_summary_of_rows_without_scores():
    row = dict.fromkeys(frame([]).columns) | {"sample": "x", "direction": "r2g", "level": "unified"}
    summary = summarise({"unified": frame([row])})
    assert summary["samples"].to_list() == [1]
    assert summary["scored"].to_list() == [0]
    assert summary["missing"].to_list() == [1]
    for name in ("mean", "mean_low", "mean_high", "q25", "median", "q75"):
        assert summary[f"imacs_{name}"].to_list() == [None]


def test_samples_without_a_score_are_counted_and_their_order_changes_nothing():
    scores = {f"s{n}": None if n == 4 else float(n**2) for n in range(15)}
    fixed = dict.fromkeys(SCHEMA) | {"direction": "g2r", "level": "head", "label": "0"}
    rows = [fixed | {"sample": name, "imacs": score} for name, score in scores.items()]
    summary = summarise({"head": frame(rows)})
    (row,) = summary.iter_rows(named=True)
    assert (row["samples"], row["scored"], row["missing"]) == (15, 14, 1)
    known = [score for score in scores.values() if score is not None]
    assert row["imacs_mean"] == pytest.approx(np.mean(known))
    assert row["imacs_median"] == np.median(known)
    assert row["imacs_mean_low"] < row["imacs_mean"] < row["imacs_mean_high"]
    assert (row["inside_mean"], row["inside_median"]) == (None, None)
    assert summarise({"head": frame(rows[::-1])}).equals(summary)
