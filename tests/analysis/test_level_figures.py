"""Figures of the levels: what is drawn where, on one scale, with the chosen region marked."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from i2am.analysis.drawing.colours import palette, position
from i2am.analysis.drawing.images import YELLOW
from i2am.analysis.drawing.level_panels import (
    asked_region,
    asked_words,
    heading,
    level_block,
    specific_panels,
)
from i2am.analysis.drawing.panels import MOST_COLUMNS, NO_IMAGES, Block, Panel, SampleImages, block
from i2am.analysis.drawing.save_maps import MOST_MAPS, save_maps
from i2am.analysis.drawing.sheet import CAPTION, MARGIN, TITLE, layout, scale_end, sheet
from i2am.analysis.drawing.text import BAR_WIDTH, TIP, fitting, font
from i2am.analysis.drawing.units import drawable, units_of
from i2am.analysis.maps.attribution import attribution_maps
from i2am.storage.errors import InputError
from tests.analysis.builders import build, layer

LAYERS = [
    layer("net.down.0.attn", gen=(8, 6), ref=(4, 4)),
    layer("net.up.1.attn", gen=(4, 3), ref=(6, 6)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("figures") / "run.zarr"
    return build(path, LAYERS, steps=4, samples=("one", "two"), images=True)[0]


def yellow_box(picture):
    rows, columns = np.nonzero((picture == YELLOW).all(-1))
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_panels_of_a_figure_share_one_scale():
    maps = [np.full((4, 4), value) for value in (0.5, 2.0, 1.0)]
    blocks = [
        block("first", [Panel("a", None, maps[0]), Panel("b", None, maps[1])]),
        block("second", [Panel("c", None, maps[2]), Panel("d", None, maps[1])]),
    ]
    end = scale_end(blocks)
    picture, plan = sheet(blocks, "title", "× uniform"), layout(blocks, end)
    assert picture.shape == (plan.height, plan.width, 3)
    colours = {}
    for placed in plan.placed:
        rows, columns = placed.picture.shape[:2]
        found = picture[placed.y : placed.y + rows, placed.x : placed.x + columns]
        assert (found == found[0, 0]).all()
        colours.setdefault(placed.title, found[0, 0])
    np.testing.assert_array_equal(colours["b"], colours["d"])
    for title, value in (("a", 0.5), ("b", 2.0), ("c", 1.0)):
        place = float(position(value, end))
        np.testing.assert_array_equal(colours[title], palette(255)[round(place * 254)])


@pytest.mark.parametrize("count", [1, 5, 8, 11, 24, 70])
def test_panels_wrap_into_even_rows_and_do_not_overlap(count):
    panels = [Panel(str(number), None, np.ones((3, 5))) for number in range(count)]
    wrapped = block("", panels)
    assert wrapped.columns <= MOST_COLUMNS
    assert wrapped.rows == -(-count // MOST_COLUMNS)
    assert wrapped.rows * wrapped.columns - count < wrapped.rows
    plan = layout([wrapped, wrapped], 2.0)
    taken = np.zeros((plan.height, plan.width), int)
    for placed in plan.placed:
        rows, columns = placed.picture.shape[:2]
        assert placed.y + rows <= plan.height
        assert placed.x + columns <= plan.right
        taken[placed.y - CAPTION : placed.y + rows, placed.x : placed.x + columns] += 1
    assert taken.max() == 1
    assert len(plan.placed) == 2 * count


@pytest.mark.parametrize("title", ["$\\frac{", "two\nlines\tand a tab", "织物 🧥", "", "x" * 500, "<b>&amp;"])
def test_any_title_can_be_written_and_stays_in_the_figure(title):
    maps = [Panel(title, None, np.ones((4, 4)))]
    picture = sheet([block(title, maps)], title, title or "x", title)
    assert picture.shape[1] == layout([block(title, maps)], 2.0, True).width
    assert (picture[:, -4:] == 255).all()


@given(st.text(max_size=60), st.floats(0, 600))
def test_words_are_cut_in_their_middle_to_their_room(words, room):
    line = " ".join(words.split())
    shown = fitting(line, font(14), room)
    assert shown == line or (font(14).getlength(shown) <= room or shown == "…")
    front, _, back = shown.partition("…") if shown != line else (line, "", "")
    assert line.startswith(front)
    assert line.endswith(back)


def test_the_colour_bar_has_the_colours_of_the_maps():
    end = 4.0
    maps = [Panel("", None, np.full((4, 4), value)) for value in (1 / end, 1.0, 2.0, end)]
    picture = sheet([block("", maps)], "", "×", end=end)
    plan = layout([block("", maps)], end)
    top = min(placed.y for placed in plan.placed)
    bar = picture[top + TIP : plan.bottom - TIP, plan.right + 14 + BAR_WIDTH // 2].astype(int)
    for placed, value in zip(plan.placed, (1 / end, 1.0, 2.0, end), strict=True):
        row = (1 - float(position(value, end))) * (len(bar) - 1)
        assert np.abs(bar[round(row)] - placed.picture[0, 0]).max() <= 4  # one pixel of the bar


def test_pairs_stay_in_one_row():
    assert block("", [Panel("", None)] * 14, together=2).columns % 2 == 0
    assert isinstance(block("", [Panel("", None)] * 2, together=2), Block)


def test_a_level_has_a_panel_for_each_label_after_its_image(run):
    images = SampleImages.read(run, "one")
    maps = {
        level: drawable(attribution_maps(run, "g2r", level, time_groups=3).sel(sample="one"))
        for level in ("time", "head", "layer")
    }
    titles = {
        level: [panel.title for panel in level_block(own, images).panels] for level, own in maps.items()
    }
    assert titles["time"] == ["reference", "steps 0–1", "step 2", "step 3"]
    assert titles["head"] == ["reference", "head 0", "head 1"]
    assert titles["layer"] == ["reference", "down.0", "up.1"]
    panels = level_block(maps["layer"], images).panels
    assert panels[2].full_title == "net.up.1.attn"
    np.testing.assert_array_equal(panels[2].values, maps["layer"].values[1])
    np.testing.assert_array_equal(panels[2].image, run.image("reference", "one"))
    assert level_block(maps["head"], NO_IMAGES).panels[0].title == "head 0"


@pytest.mark.parametrize(
    ("direction", "at", "cells", "words"),
    [
        ("g2r", (5, 2), [(5, 2)], "asked: patch 5,2 of generated"),
        ("g2r", [(0, 0), (7, 5)], [(0, 0), (7, 5)], "asked: 2 patches of generated"),
        ("g2r", (1, 2, 3, 4), [(1, 2), (1, 3), (2, 2), (2, 3)], "asked: box 1,2,3,4 of generated"),
        ("r2g", (5, 3), [(5, 3)], "asked: patch 5,3 of reference"),
    ],
)
def test_the_asked_region_is_in_patches_of_the_largest_grid(run, direction, at, cells, words):
    maps = attribution_maps(run, direction, "specific", at=at)
    region = asked_region(run, maps.attrs, NO_IMAGES)
    assert region.shape == {"g2r": (8, 6), "r2g": (6, 6)}[direction]
    assert [tuple(cell) for cell in np.argwhere(region).tolist()] == cells
    assert asked_words(maps.attrs) == words


def test_the_asked_region_of_one_layer_is_in_its_own_patches(run):
    maps = attribution_maps(run, "g2r", "specific", at=(3, 1), layers="net.up.1.attn")
    assert asked_region(run, maps.attrs, NO_IMAGES).shape == (4, 3)


def test_the_asked_region_of_a_mask(run):
    images = SampleImages.read(run, "one")
    named = attribution_maps(run, "g2r", "specific", at="mask")
    np.testing.assert_array_equal(asked_region(run, named.attrs, images), images.masks["mask"])
    small = np.zeros((8, 6), bool)
    small[2:4, 1:3] = True
    maps = attribution_maps(run, "g2r", "specific", at=small)
    np.testing.assert_array_equal(asked_region(run, maps.attrs, images), small)
    large = attribution_maps(run, "g2r", "specific", at=np.kron(small, np.ones((3, 3))))
    assert asked_region(run, large.attrs, images) is None
    assert asked_words(large.attrs, known=False) == "asked: a mask, not shown"
    panels = specific_panels(drawable(large.sel(sample="one")), images, run, "map")
    assert panels[0].title == "asked: a mask, not shown"


@pytest.mark.parametrize(("direction", "patch", "grid"), [("g2r", (6, 4), (8, 6)), ("r2g", (0, 3), (6, 6))])
def test_a_saved_picture_marks_the_patch_where_it_is(run, tmp_path, direction, patch, grid):
    maps = attribution_maps(run, direction, "specific", at=patch, samples="two")
    save_maps(maps, tmp_path / "F.png", run)
    picture = np.asarray(Image.open(tmp_path / "F.png"))
    height, width = 256, 192  # the generated image and the reference are 24 x 18
    first = picture[TITLE + CAPTION :, MARGIN:][:height, :width]
    top, bottom, left, right = yellow_box(first)
    assert (top, bottom) == (
        max(round(patch[0] * height / grid[0]) - 3, 0),
        pytest.approx((patch[0] + 1) * height / grid[0] + 2, abs=1),
    )
    assert (left, right) == (
        pytest.approx(patch[1] * width / grid[1] - 3, abs=1),
        pytest.approx((patch[1] + 1) * width / grid[1] + 2, abs=1),
    )


@pytest.mark.parametrize("level", ["unified", "time", "head", "layer", "specific"])
def test_a_saved_picture_is_the_figure_of_its_maps(run, tmp_path, level):
    options = {"time": {"time_groups": 4}, "specific": {"at": "mask"}}.get(level, {})
    maps = attribution_maps(run, "g2r", level, **options)
    save_maps(maps, tmp_path / "F.png", run)
    saved = np.asarray(Image.open(tmp_path / "F.png"))
    panels, blocks = [], []
    for sample in run.samples:
        images, own = SampleImages.read(run, sample), drawable(maps.sel(sample=sample))
        if level in ("time", "head", "layer"):
            blocks.append(level_block(own, images, sample))
        elif level == "specific":
            panels += specific_panels(own, images, run, sample)
        else:
            panels.append(
                Panel(sample, images.images["reference"], own.values, images.masks["reference_mask"])
            )
    plan = layout(blocks or [block("", panels)], scale_end(blocks or [block("", panels)]))
    assert len(plan.placed) == {"unified": 2, "time": 10, "head": 6, "layer": 6, "specific": 4}[level]
    for placed in plan.placed:
        rows, columns = placed.picture.shape[:2]
        found = saved[placed.y : placed.y + rows, placed.x : placed.x + columns]
        np.testing.assert_array_equal(found, placed.picture)


def test_without_its_run_a_picture_is_of_maps_alone(run, tmp_path):
    maps = attribution_maps(run, "g2r", "specific", at=(2, 2), samples="one")
    save_maps(maps, tmp_path / "F.png")
    picture = np.asarray(Image.open(tmp_path / "F.png"))
    assert not (picture == YELLOW).all(-1).any()


def test_too_many_maps_for_one_picture(run, tmp_path):
    maps = attribution_maps(run, "g2r", "head")
    many = xr.concat([maps] * (MOST_MAPS // 4 + 1), "sample").assign_attrs(maps.attrs)
    with pytest.raises(InputError, match=f"a picture of {MOST_MAPS + 4} maps; expected at most {MOST_MAPS}"):
        save_maps(many, tmp_path / "F.png")
    assert list(tmp_path.iterdir()) == []


def test_titles_and_bars_say_what_is_no_attention_and_no_density(run, tmp_path):
    pooled, _ = build(tmp_path / "p.zarr", [layer("p", ref=(0, 0), ref_prefix=1)])
    similar = attribution_maps(pooled, "r2g").attrs
    assert heading(similar) == "R2G (similarity) on the generated image"
    assert units_of(similar).bar == "similarity, × uniform"
    plain = attribution_maps(run, "r2g").attrs
    assert (heading(plain), units_of(plain).bar) == ("R2G on the generated image", "attention, × uniform")
    official = attribution_maps(run, "r2g", protocol="official", layers="net.up.1.attn")
    assert "uniform" not in units_of(official.attrs).bar
    assert units_of(official.attrs).uniform is None
    drawn = drawable(official)
    assert float(drawn.mean()) == pytest.approx(1)
    np.testing.assert_allclose(drawn / drawn.values.max(), official / official.values.max(), rtol=1e-6)
    np.testing.assert_array_equal(drawable(attribution_maps(run, "g2r")), attribution_maps(run, "g2r"))
