"""Charts of scores: gaps left open, words of the dots, colours by value; the same as SVG in a page."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest

from i2am.analysis.drawing.charts import lines, ranges, strips
from i2am.analysis.drawing.colours import palette, position
from i2am.analysis.drawing.inline_svg import Dots
from i2am.analysis.drawing.short_labels import axis_labels, shortened
from i2am.analysis.drawing.units import units_of
from i2am.analysis.report.heat_table import heat_table
from i2am.analysis.report.level_charts import level_charts, level_heats
from i2am.analysis.report.scale_bar import css, density_bar
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


def dots(chart):
    """Words of the dots of a chart to their places (x, y)."""
    found = chart.figure.findobj(Dots)
    return {
        words: tuple(place) for own in found for words, place in zip(own.words, own.get_xydata(), strict=True)
    }


def test_a_line_breaks_where_a_value_is_missing_and_keeps_its_place():
    values = np.array([[1, 2, 3], [NAN, 2, NAN], [NAN, NAN, NAN], [1, 2, 3], [2, 3, 4.0]])
    chart = lines("t", "u", list("abcde"), [Series("R2G", "#a63d2f", values)])
    assert {words: place[0] for words, place in dots(chart).items()} == {
        "R2G, a: 2": 0, "R2G, b: 2": 1, "R2G, d: 2": 3, "R2G, e: 3": 4,
    }  # fmt: skip
    (line,) = (line for line in chart.figure.axes[0].lines if not isinstance(line, Dots))
    np.testing.assert_array_equal(line.get_ydata(), values[:, 1])
    paths = [path for path in re.findall('d="([^"]*)" style="fill: none', chart.svg()) if path.count("L") > 1]
    assert [path.count("M") for path in paths] == [2]
    assert lines("t", "u", ["a"], [Series("R2G", "red", np.full((1, 3), NAN))]) is None


def test_a_range_without_an_interval_is_a_dot():
    values = np.array([[0.5, 1, 2], [NAN, 1.5, NAN], [NAN, NAN, NAN]])
    labels = [(name, name) for name in "abc"]
    chart = ranges("t", "u", labels, [Series("R2G", "red", values)], 1.0, sign="×")
    assert dots(chart) == {"R2G, a: 1× (0.5 to 2)": (1.0, 0.0), "R2G, b: 1.5×": (1.5, 1.0)}
    assert ranges("t", "u", labels, [Series("R2G", "red", np.full((3, 3), NAN))]) is None


def test_a_chart_in_a_page_takes_its_colours_and_fonts_and_escapes_what_is_named():
    rows = [
        ("<b>\u202e", "#a63d2f", pl.DataFrame({"sample": ["</svg><script>", "\x1b\u202e"], "x": [1.0, 2]}))
    ]
    chart = strips("<i>", "u", rows, "x", 1.5)
    svg = str(chart.svg())
    assert str(chart.svg()) == svg  # the same data gives the same page
    assert svg.count('<circle class="dot" style="fill: var(--r2g)"') == 2
    assert "<title>&lt;/svg&gt;&lt;script&gt;: 1</title>" in svg
    assert "<title>\ufffd\ufffd: 2</title>" in svg
    assert ">&lt;b&gt;\ufffd</text>" in svg
    assert 'aria-label="&lt;i&gt;, u"' in svg
    assert not re.search(r"font-family|url\(|href|#[0-9a-f]{6}| id=|<style|<defs|xmlns|<!", svg)
    assert {"var(--ink)", "var(--faint)", "var(--rule)"} <= set(re.findall(r"var\([-\w]+\)", svg))


def test_a_figure_of_a_chart_is_the_same_file_every_time(tmp_path):
    for name in ("one", "two"):
        rows = [("R2G", "#a63d2f", pl.DataFrame({"sample": ["a", "b"], "x": [1.0, 2]}))]
        strips("$\\frac{", "u", rows, "x").save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_both_directions_stand_at_one_place_where_one_lacks_a_layer():
    rows = pl.concat([table("layer", ["m.1", "m.2"], ("g2r",)), table("layer", ["m.0", "m.1"], ("r2g",))])
    labels = labels_of(rows, ["m.0", "m.1", "m.2"])
    assert labels == ["m.0", "m.1", "m.2"]
    chart = level_charts({"layer": rows}, "layer", UNITS, labels)[0]
    rows = {words.split(":")[0]: place[1] for words, place in dots(chart).items()}
    assert set(rows) == {"R2G, m.0", "R2G, m.1", "G2R, m.1", "G2R, m.2"}
    assert round(rows["R2G, m.1"]) == round(rows["G2R, m.1"]) == 1


@pytest.mark.parametrize("level", ["time", "head", "layer"])
def test_imacs_is_shown_by_means_with_intervals_where_there_is_a_summary(level):
    labels = {"time": ["0-1", "2-2"], "head": ["0", "1"], "layer": ["m.0", "m.1"]}[level]
    tables = {level: table(level, labels)}
    plain = level_charts(tables, level, UNITS, labels)
    assert [chart.title for chart in plain] == ["Density inside the mask", "IMACS"]
    assert plain[1].unit == "median and quartiles over samples"
    summary = summarise(tables, 0.9)
    chart = level_charts(tables | {"summary": summary}, level, UNITS, labels)[1]
    assert chart.unit == "mean over samples with its 90% bootstrap interval"
    mean = summary.filter(direction="g2r", label=labels[1])["imacs_mean"][0]
    assert any(f"{mean:.3g}" in words and words.startswith("G2R") for words in dots(chart))


def test_a_level_without_scores_has_no_charts():
    rows = table("head", ["0"]).with_columns(pl.lit(None, pl.Float64).alias("imacs"))
    assert level_charts({"head": rows}, "head", UNITS, []) == []
    assert level_charts({}, "head", UNITS, []) == []


def test_a_heat_table_colours_by_value():
    values = [[1.0, 2.0, NAN], [0.5, 2.0, 1.0]]
    found = heat_table("t", "u", [(c, c) for c in "xyz"], ["a", "b"], values, end=4.0)
    cells = [cell for _, row in found.rows for cell in row]
    colours = [background for background, _, _ in cells]
    assert colours[1] == colours[4] == css(palette()[round(float(position(2.0, 4.0)) * 255)])
    assert colours[0] == colours[5] != colours[1]
    assert (cells[2][2], colours[2]) == ("–", "transparent")
    assert found.scale == density_bar(4.0)
    assert not found.dense
    plain = heat_table("t", "u", [(c, c) for c in "xyz"], ["a", "b"], values)
    assert [words for _, words in plain.scale.ticks] == ["0.5", "1.25", "2"]
    assert heat_table("t", "u", [("x", "x")] * 20, ["a"], [[1.0] * 20]).dense
    assert heat_table("t", "u", [("x", "x")], ["a"], [[NAN]]) is None


def test_the_tables_of_a_level_have_a_row_for_each_sample_and_one_scale():
    rows = table("layer", ["m.0", "m.1"])
    heats = list(level_heats({"layer": rows}, "layer", UNITS, ["m.0", "m.1"], ["c", "a"]))
    assert [heat.title for heat in heats] == ["R2G", "G2R"]
    assert [name for name, _ in heats[0].rows] == ["c", "a"]
    assert heats[0].scale == heats[1].scale
    value = rows.filter(sample="a", direction="g2r", label="m.1")["inside"][0]
    assert heats[1].rows[1][1][1][2] == f"{value:.3g}"
    assert list(level_heats({"layer": rows}, "layer", UNITS, [], ["a"])) == []


def test_a_strip_chart_leaves_out_what_is_missing():
    rows = table("specific", [None]).with_columns(
        pl.when(sample="a").then(None).otherwise("imacs").alias("imacs")
    )
    chart = strips("t", "u", [("R2G", "red", rows.filter(direction="r2g"))], "imacs", 0.0)
    assert {words.split(":")[0] for words in dots(chart)} == {"b", "c"}


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
