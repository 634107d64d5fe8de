"""Colours, outlines, marks and data URLs: what figures and pages are made of."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from i2am.analysis.drawing.colours import LIMITS, limit, paint, palette, position
from i2am.analysis.drawing.images import (
    MAP_COLOURS,
    YELLOW,
    backdrop_url,
    covered,
    data_url,
    edge,
    fit,
    map_url,
    mark,
    outline,
    scaled,
)
from i2am.analysis.drawing.panels import Panel
from i2am.analysis.grids.resize import area
from i2am.analysis.report.thumbnails import (
    IMAGE_BYTES,
    LEAST,
    MAP_BYTES,
    PAGE_BYTES,
    image_thumbnail,
    map_thumbnail,
    thumbnail_size,
)


def decoded(url):
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@given(
    st.lists(st.lists(st.floats(-1, 100), min_size=1, max_size=30), min_size=1, max_size=4),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_the_scale_is_the_smallest_that_holds_the_share_of_values(parts, quantile):
    every = np.concatenate(parts)

    def held(end):
        return np.mean([(1 - 1e-9) / end <= max(value, 1 / 8) <= end * (1 + 1e-9) for value in every])

    expected = next((end for end in LIMITS if held(end) >= quantile - 1e-12), LIMITS[-1])
    assert limit(np.array(part) for part in parts) == limit([every])
    assert limit([every], quantile) == expected


def test_a_scale_of_nothing_finite():
    assert limit([]) == LIMITS[0]
    assert limit([np.full((2, 2), np.nan)]) == LIMITS[0]


def test_uniform_is_the_middle_colour_and_values_off_the_scale_are_the_end_colours():
    picture = paint(np.array([[1.0]]), 4.0, (2, 2))
    np.testing.assert_array_equal(picture, np.broadcast_to(palette(255)[127], (2, 2, 3)))
    for value, place in ((100.0, -1), (1e-9, 0), (-3.0, 0)):
        assert (paint(np.array([[value]]), 4.0, (1, 1))[0, 0] == palette(255)[place]).all()
    assert (paint(np.array([[np.nan]]), 4.0, (1, 1))[0, 0] == 128).all()


@pytest.mark.parametrize(("size", "shape"), [((6, 8), (24, 32)), ((24, 18), (8, 6)), ((5, 5), (17, 17))])
def test_a_mask_at_another_size_covers_what_is_covered_by_half(size, shape):
    mask = np.random.default_rng(0).random(size) > 0.6
    found, share = covered(mask, shape), area(mask, shape)
    unclear = np.abs(share - 0.5) < 1e-6
    if shape[0] < size[0]:
        np.testing.assert_array_equal(found[~unclear], share[~unclear] > 0.5)
    else:  # pixels of the picture whose centre lies in the mask
        y = ((np.arange(shape[0]) + 0.5) * size[0] / shape[0]).astype(int)
        x = ((np.arange(shape[1]) + 0.5) * size[1] / shape[1]).astype(int)
        np.testing.assert_array_equal(found, mask[np.ix_(y, x)])


def test_a_region_smaller_than_a_pixel_is_still_there():
    mask = np.zeros((64, 64), bool)
    mask[40, 9] = True
    assert np.argwhere(covered(mask, (8, 8))).tolist() == [[5, 1]]


def test_an_outline_is_inside_its_mask():
    mask = np.zeros((20, 20), bool)
    mask[5:15, 3:17] = True
    drawn = outline(np.zeros((20, 20, 3), np.uint8), mask, 2)
    yellow = (drawn == YELLOW).all(-1)
    inner = np.zeros_like(mask)
    inner[7:13, 5:15] = True
    np.testing.assert_array_equal(yellow, mask & ~inner)
    assert edge(np.ones((4, 4), bool)).sum() == 12


@pytest.mark.parametrize("patch", [(0, 0), (2, 5), (5, 7), (0, 7)])
def test_a_marked_patch_keeps_its_pixels_and_has_a_ring_around_it(patch):
    image = np.random.default_rng(1).integers(0, 200, (60, 80, 3)).astype(np.uint8)
    region = np.zeros((60, 80), bool)
    region[patch[0] * 10 : patch[0] * 10 + 10, patch[1] * 10 : patch[1] * 10 + 10] = True
    drawn = mark(image, region, 3)
    inside = region.copy()
    inside[:3], inside[-3:], inside[:, :3], inside[:, -3:] = False, False, False, False
    np.testing.assert_array_equal(drawn[inside], image[inside])
    rows, columns = np.nonzero((drawn == YELLOW).all(-1))
    top, left = patch[0] * 10, patch[1] * 10
    assert (rows.min(), rows.max()) == (max(top - 3, 0), min(top + 12, 59))
    assert (columns.min(), columns.max()) == (max(left - 3, 0), min(left + 12, 79))
    far = np.ones_like(region)
    far[max(top - 4, 0) : top + 14, max(left - 4, 0) : left + 14] = False
    np.testing.assert_array_equal(drawn[far], image[far])


def test_the_browser_multiplies_map_and_backdrop_into_the_painted_panel():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 255, (48, 36, 3)).astype(np.uint8)
    values = np.exp(rng.normal(size=(8, 6)))
    shape = fit(image.shape, 96)
    map_ = np.asarray(decoded(map_url(values, 4.0, shape)).convert("RGB")).astype(float)
    grey = np.asarray(decoded(backdrop_url(image, shape, None))).astype(float)
    expected = paint(values, 4.0, shape, scaled(image, shape)).astype(float)
    # The palettes differ: 63 colours in a page, 255 in a figure.
    step = np.abs(np.diff(palette(MAP_COLOURS).astype(int), axis=0)).max()
    assert np.abs(map_ * grey[..., None] / 255 - expected).max() <= step / 2 + 3


def test_one_density_has_one_colour_in_every_thumbnail():
    here, there = np.full((3, 4), 0.5), np.full((3, 4), 2.0)
    there[1, 1] = here[0, 0]
    shape = (3, 4)
    colours = [np.asarray(decoded(map_url(values, 4.0, shape)).convert("RGB")) for values in (here, there)]
    np.testing.assert_array_equal(colours[0][0, 0], colours[1][1, 1])
    place = position(0.5, 4.0) * (MAP_COLOURS - 1)
    np.testing.assert_array_equal(colours[0][0, 0], palette(MAP_COLOURS)[round(float(place))])


def test_lines_are_yellow_over_a_map_and_leave_the_backdrop_to_it():
    lines = np.zeros((8, 8), bool)
    lines[2] = True
    tile = np.asarray(decoded(map_url(np.ones((2, 2)), 4.0, (8, 8), lines)).convert("RGB"))
    assert (tile[2] == YELLOW).all()
    assert (np.asarray(decoded(backdrop_url(np.zeros((4, 4, 3), np.uint8), (8, 8), lines)))[2] == 255).all()


@pytest.mark.parametrize("longest", [LEAST, 176, 320])
def test_pictures_of_noise_stay_below_their_bytes(longest):
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 255, (longest, longest, 3)).astype(np.uint8)
    pixels = longest**2
    tile = map_thumbnail(Panel("", noise, np.exp(4 * rng.normal(size=(longest, longest)))), 8.0, longest, "×")
    assert len(tile.url) <= MAP_BYTES * pixels
    assert len(image_thumbnail(Panel("", noise), 8.0, longest, "×").url) <= IMAGE_BYTES * pixels
    assert len(data_url(noise)) <= IMAGE_BYTES * pixels


@given(st.integers(0, 500), st.integers(0, 8), st.integers(0, 5000), st.integers(LEAST, 320))
def test_a_page_has_room_for_what_it_shows(maps, images, samples, most):
    longest, shown = thumbnail_size(maps, images, samples, most)
    assert LEAST <= longest <= most
    assert 0 <= shown <= samples
    weight = maps * MAP_BYTES + images * IMAGE_BYTES
    assert shown * weight * longest**2 <= PAGE_BYTES
    if shown < samples:
        assert (shown + 1) * weight * LEAST**2 > PAGE_BYTES
