"""Geometry of charts: places in proportion, gaps left open, colours by value."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from i2am.analysis.drawing.colours import palette, position
from i2am.analysis.drawing.short_labels import axis_labels, shortened
from i2am.analysis.drawing.units import units_of
from i2am.analysis.report.level_charts import level_charts, level_heats
from i2am.analysis.report.svg.heat_table import heat_table
from i2am.analysis.report.svg.line_chart import line_chart
from i2am.analysis.report.svg.range_chart import range_chart
from i2am.analysis.report.svg.scale_bar import css, density_scale
from i2am.analysis.report.svg.strip_chart import axis, strip_chart
from i2am.analysis.scores.series import Series, labels_of, series_of
from i2am.analysis.scores.summary import summarise
from i2am.analysis.scores.tables import SCHEMA, frame

UNITS = units_of({"protocol": "corrected", "kind": "attention"})
NAN = np.nan


def table(level, labels, directions=("r2g", "g2r"), samples=("a", "b", "c")):
    rng = np.random.default_rng(0)
    fixed = {"region": "all", "level": level, "kind": "attention", "run_id": "r", "method": "i2am",
             "protocol": "corrected", "penalty": 3.0}  # fmt: skip
    return frame(
        [
            dict.fromkeys(SCHEMA)
            | fixed
            | {"sample": sample, "direction": way, "label": label}
            | {"imacs": rng.normal(), "inside": rng.random() + 0.5, "share": 0.2}
            for sample in samples
            for way in directions
            for label in labels
        ]
    )


@pytest.mark.parametrize(("start", "end"), [(10, 200), (200, 10)])
def test_an_axis_is_linear_and_holds_its_values(start, end):
    place, ticks = axis([-0.3, 1.7], 2.1, start, end)
    for value in (-0.3, 1.7, 2.1):
        assert min(start, end) <= place(value) <= max(start, end)
    assert place(1.0) == pytest.approx((place(0.0) + place(2.0)) / 2, abs=0.02)
    assert [float(words) for _, words in ticks] == sorted(float(words) for _, words in ticks)


def test_a_line_breaks_where_a_value_is_missing_and_keeps_its_place():
    values = np.array([[1, 2, 3], [NAN, 2, NAN], [NAN, NAN, NAN], [1, 2, 3], [2, 3, 4.0]])
    chart = line_chart("t", "u", list("abcde"), [Series("R2G", "red", values)])
    (line,) = chart.lines
    assert [len(points.split()) for points in line.lines] == [2, 2]
    assert [len(points.split()) for points in line.bands] == [2, 4]
    x = [mark.x for mark in line.marks]
    steps = np.diff([tick[0] for tick in chart.x_ticks])
    assert np.ptp(steps) < 0.03
    assert x == [chart.x_ticks[n][0] for n in (0, 1, 3, 4)]
    assert line_chart("t", "u", ["a"], [Series("R2G", "red", np.full((1, 3), NAN))]) is None


def test_a_range_without_an_interval_is_a_dot():
    values = np.array([[0.5, 1, 2], [NAN, 1.5, NAN], [NAN, NAN, NAN]])
    labels = [(name, name) for name in "abc"]
    chart = range_chart("t", "u", labels, [Series("R2G", "red", values)], 1.0, sign="×")
    first, second = chart.ranges
    assert first.ends[0] < first.x < first.ends[1]
    assert second.ends is None
    assert first.words == "R2G, a: 1× (0.5 to 2)"
    assert first.x == chart.reference
    assert range_chart("t", "u", labels, [Series("R2G", "red", np.full((3, 3), NAN))]) is None


def test_both_directions_stand_at_one_place_where_one_lacks_a_layer():
    rows = pl.concat([table("layer", ["m.1", "m.2"], ("g2r",)), table("layer", ["m.0", "m.1"], ("r2g",))])
    labels = labels_of(rows, ["m.0", "m.1", "m.2"])
    assert labels == ["m.0", "m.1", "m.2"]
    charts = dict(level_charts({"layer": rows}, "layer", UNITS, labels))
    by_words = {item.words.split(":")[0]: item.y for item in charts["ranges"].ranges}
    assert set(by_words) == {"R2G, m.0", "R2G, m.1", "G2R, m.1", "G2R, m.2"}
    assert abs(by_words["R2G, m.1"] - by_words["G2R, m.1"]) <= 6


@pytest.mark.parametrize("level", ["time", "head", "layer"])
def test_imacs_is_shown_by_means_with_intervals_where_there_is_a_summary(level):
    labels = {"time": ["0-1", "2-2"], "head": ["0", "1"], "layer": ["m.0", "m.1"]}[level]
    tables = {level: table(level, labels)}
    plain = [chart for _, chart in level_charts(tables, level, UNITS, labels)]
    assert [chart.title for chart in plain] == ["Density inside the mask", "IMACS"]
    assert plain[1].unit == "median and quartiles over samples"
    summary = summarise(tables, 0.9)
    macro, chart = list(level_charts(tables | {"summary": summary}, level, UNITS, labels))[1]
    assert macro == ("lines" if level == "time" else "ranges")
    assert chart.unit == "mean over samples with its 90% bootstrap interval"
    mean = summary.filter(direction="g2r", label=labels[1])["imacs_mean"][0]
    words = [mark.words for line in chart.lines for mark in line.marks] if level == "time" else [
        item.words for item in chart.ranges
    ]  # fmt: skip
    assert any(f"{mean:.3g}" in text and text.startswith("G2R") for text in words)


def test_a_level_without_scores_has_no_charts():
    rows = table("head", ["0"]).with_columns(pl.lit(None, pl.Float64).alias("imacs"))
    assert list(level_charts({"head": rows}, "head", UNITS, [])) == []
    assert list(level_charts({}, "head", UNITS, [])) == []


def test_a_heat_table_colours_by_value():
    values = [[1.0, 2.0, NAN], [0.5, 2.0, 1.0]]
    found = heat_table("t", "u", "sample", [(c, c) for c in "xyz"], ["a", "b"], values, end=4.0)
    cells = [cell for _, row in found.rows for cell in row]
    assert cells[1].colour == cells[4].colour == css(palette()[round(float(position(2.0, 4.0)) * 255)])
    assert cells[0].colour == cells[5].colour != cells[1].colour
    assert (cells[2].words, cells[2].colour) == ("–", "transparent")
    assert found.scale == density_scale(4.0)
    assert not found.dense
    plain = heat_table("t", "u", "layer", [(c, c) for c in "xyz"], ["a", "b"], values)
    assert [words for _, words in plain.scale.ticks] == ["0.5", "1.25", "2"]
    assert heat_table("t", "u", "layer", [("x", "x")] * 20, ["a"], [[1.0] * 20]).dense
    assert heat_table("t", "u", "layer", [("x", "x")], ["a"], [[NAN]]) is None


def test_the_tables_of_a_level_have_a_row_for_each_sample_and_one_scale():
    rows = table("layer", ["m.0", "m.1"])
    heats = list(level_heats({"layer": rows}, "layer", UNITS, ["m.0", "m.1"], ["c", "a"]))
    assert [heat.title for heat in heats] == ["R2G", "G2R"]
    assert [name for name, _ in heats[0].rows] == ["c", "a"]
    assert heats[0].scale == heats[1].scale
    value = rows.filter(sample="a", direction="g2r", label="m.1")["inside"][0]
    assert heats[1].rows[1][1][1].words == f"{value:.3g}"
    assert list(level_heats({"layer": rows}, "layer", UNITS, [], ["a"])) == []


def test_a_strip_chart_leaves_out_what_is_missing():
    rows = table("specific", [None]).with_columns(
        pl.when(sample="a").then(None).otherwise("imacs").alias("imacs")
    )
    chart = strip_chart("t", "u", [("R2G", "red", rows.filter(direction="r2g"))], "imacs", 0.0)
    assert {mark.sample for mark in chart.strips[0].marks} == {"b", "c"}


def test_labels_along_an_axis():
    assert axis_labels("time", ["0-4", "5-5"]) == ["0–4", "5"]
    assert axis_labels("head", ["0", "1"]) == ["0", "1"]
    assert axis_labels("layer", ["m.0.attn", "m.1.attn"]) == ["m.0", "m.1"]


def test_layer_names_keep_the_numbers_of_words_that_all_share():
    names = [f"unet.{block}.attentions.{a}.transformer_blocks.{t}.attn2"
             for block in ("down_blocks.1", "mid_block") for a in (0, 1) for t in (0, 1)]  # fmt: skip
    assert shortened(names)[1] == "down_blocks.1.0.1"
    assert shortened(names)[-1] == "mid_block.1.1"
    blocks = [f"warp_flow_blks.{n}.transformer_blocks.0.attn2" for n in range(9)]
    assert shortened(blocks)[8] == "warp_flow_blks.8"
    assert shortened(["0", "1"]) == ["0", "1"]


def test_series_hold_nothing_where_a_label_is_missing():
    rows = pl.DataFrame(
        {"direction": ["r2g"], "label": ["a"], "low": [0.1], "mid": [0.2], "high": [None]},
        schema_overrides={"high": pl.Float64},
    )
    (one,) = series_of(rows, ["a", "b"], ("low", "mid", "high"), {"r2g": "red", "g2r": "blue"})
    np.testing.assert_array_equal(one.values, [[0.1, 0.2, NAN], [NAN, NAN, NAN]])
