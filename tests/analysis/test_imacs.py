from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.scores.imacs import imacs
from i2am.storage.errors import InputError, NoAnswer, ShapeMismatch, UnknownName
from tests.analysis import oracle
from tests.analysis.builders import build, disc, layer

MASK = disc((16, 12), (7, 6), 4)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 999), st.floats(0, 5))
def test_equals_the_oracle(seed, penalty):
    image = np.random.default_rng(seed).random((8, 6))
    assert imacs(image, MASK, "r2g", penalty) == pytest.approx(oracle.imacs(image, MASK, penalty), abs=1e-9)


def test_a_map_equal_to_its_mask_scores_one_and_its_inverse_the_worst():
    assert imacs(MASK.astype(float), MASK, "g2r") == pytest.approx(1)
    assert imacs(1.0 - MASK, MASK, "g2r") == pytest.approx(-3)


def test_a_constant_map_scores_zero():
    assert imacs(np.full((8, 6), 1.0), MASK, "r2g") == 0
    assert imacs(1 + np.random.default_rng(0).normal(size=(8, 6)) * 1e-7, MASK, "r2g") == 0


@pytest.mark.parametrize("scale", [1, 255])
def test_masks_of_any_type_mean_the_same(scale):
    image = np.random.default_rng(0).random((8, 6))
    assert imacs(image, (MASK * scale).astype(np.uint8), "r2g") == imacs(image, MASK, "r2g")
    assert imacs(image, MASK.astype(np.float32), "r2g") == imacs(image, MASK, "r2g")


def test_leading_axes_and_the_direction_of_a_data_array():
    rng = np.random.default_rng(0)
    maps = xr.DataArray(
        rng.random((2, 3, 8, 6)),
        dims=("sample", "head", "y", "x"),
        coords={"sample": ["a", "b"]},
        attrs={"direction": "r2g"},
    )
    masks = np.stack([MASK, ~MASK])
    scores = imacs(maps, masks)
    assert scores.dims == ("sample", "head")
    assert list(scores.sample.values) == ["a", "b"]
    for sample in range(2):
        for head in range(3):
            assert scores[sample, head] == imacs(maps.values[sample, head], masks[sample], "r2g")
    assert imacs(maps.values, MASK, "r2g").shape == (2, 3)


def named_maps():
    """Maps of three samples and three heads, so that axes could be mistaken for each other."""
    return xr.DataArray(
        np.random.default_rng(0).random((3, 3, 8, 6)),
        dims=("sample", "head", "y", "x"),
        coords={"sample": ["a", "b", "c"], "head": [0, 1, 2]},
        attrs={"direction": "g2r"},
    )


def test_axes_are_known_by_their_names():
    maps, masks = named_maps(), np.stack([MASK, ~MASK, np.roll(MASK, 2)])
    plain = imacs(maps, masks)
    turned = imacs(maps.transpose("x", "head", "y", "sample"), masks)
    assert turned.dims == ("head", "sample")
    np.testing.assert_array_equal(turned.transpose("sample", "head"), plain)


def test_masks_that_name_their_samples_are_matched_by_name():
    maps, masks = named_maps(), np.stack([MASK, ~MASK, np.roll(MASK, 2)])
    plain = imacs(maps, masks)
    named = xr.DataArray(masks, dims=("sample", "y", "x"), coords={"sample": ["a", "b", "c"]})
    np.testing.assert_array_equal(imacs(maps, named[::-1].transpose("x", "sample", "y")), plain)
    np.testing.assert_array_equal(imacs(maps.sel(sample="b"), named), plain[1])
    with pytest.raises(UnknownName, match="unknown sample of the masks 'c'"):
        imacs(maps, named[:2])


@pytest.mark.parametrize("level", ["unified", "time", "head", "layer", "specific"])
@pytest.mark.parametrize("direction", ["r2g", "g2r"])
def test_maps_of_any_level_with_a_mask_for_each_sample(tmp_path, level, direction):
    layers = [layer("a", gen=(8, 6), ref=(4, 3)), layer("b", gen=(4, 3), ref=(4, 3))]
    run, _ = build(tmp_path / "run.zarr", layers, samples=("one", "two"))
    more = {"time": {"time_groups": 2}, "specific": {"at": (1, 1)}}.get(level, {})
    maps, masks = attribution_maps(run, direction, level, **more), np.stack([MASK, np.roll(MASK, 2)])
    scores = imacs(maps, masks)
    assert scores.dims == maps.dims[:-2]
    for index in np.ndindex(scores.shape):
        expected = oracle.imacs(maps[index].values, masks[index[0]], 3.0)
        assert scores.values[index] == pytest.approx(expected, abs=1e-6)


def test_a_direction_that_contradicts_the_maps_is_refused():
    with pytest.raises(InputError, match="expected 'g2r', which the maps' attributes say; got 'r2g'"):
        imacs(named_maps(), MASK, "r2g")
    assert imacs(named_maps(), MASK, "g2r").shape == (3, 3)


@pytest.mark.parametrize(
    ("maps", "masks", "direction", "error", "words"),
    [
        (np.ones((8, 6)), MASK, None, InputError, "direction is not known"),
        (np.ones((8, 6)), MASK, "up", UnknownName, "unknown direction"),
        (np.ones((8, 6)), MASK[0], "r2g", ShapeMismatch, "maps and masks"),
        (np.ones((8, 6)), MASK.T, "r2g", ShapeMismatch, "aspect ratio of 8 x 6"),
        (np.ones((2, 8, 6)), np.stack([MASK] * 3), "r2g", ShapeMismatch, r"one for each of \(2,\)"),
        (np.ones((8, 6)), np.zeros((16, 12)), "r2g", NoAnswer, "a mask that is empty"),
        (np.ones((8, 6)), np.ones((16, 12)), "r2g", NoAnswer, "a mask that is full"),
        (np.ones((8, 6)), np.full((16, 12), np.nan), "r2g", ShapeMismatch, "mask values"),
    ],
)
def test_bad_input(maps, masks, direction, error, words):
    with pytest.raises(error, match=words):
        imacs(maps, masks, direction)


@pytest.mark.parametrize("penalty", [-1, np.nan, np.inf])
def test_bad_penalty(penalty):
    with pytest.raises(InputError, match="penalty"):
        imacs(np.ones((8, 6)), MASK, "r2g", penalty)


def test_masks_whose_range_cannot_be_told_are_refused():
    """A float mask from 0 to 255 holds greys that would all count as inside."""
    maps, grey = np.random.default_rng(0).random((8, 8)), np.zeros((8, 8))
    grey[2:5, 2:5], grey[5] = 255, 3
    expected = imacs(maps, grey > 127, "r2g")
    for same in (grey.astype(np.uint8), grey.astype(np.int64), grey / 255, (grey / 255).astype(np.float16)):
        assert imacs(maps, same, "r2g") == expected
    for wrong in (grey, grey - 1, grey.astype(np.uint16) * 257, grey / 127.5 - 1, np.where(grey, np.nan, 0)):
        with pytest.raises(ShapeMismatch, match="mask values; expected True and False, floats from 0 to 1"):
            imacs(maps, wrong, "r2g")
