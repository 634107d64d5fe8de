from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analysis.grids.resize import area, bicubic, linear
from tests.analysis import oracle

SIDES = st.integers(1, 12)


@settings(deadline=None, max_examples=25)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 999))
def test_bicubic_equals_the_oracle(height, width, rows, columns, seed):
    image = np.random.default_rng(seed).normal(size=(height, width))
    np.testing.assert_allclose(
        bicubic(image, (rows, columns)), oracle.resize(image, rows, columns), atol=1e-12
    )


@settings(deadline=None, max_examples=25)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 999))
def test_linear_equals_the_oracle_and_stays_within_the_range(height, width, rows, columns, seed):
    """Of values that jump, and are 0 in many places: a density never becomes negative, in float32 neither."""
    image = np.random.default_rng(seed).choice([0.0, 0.001, 1.0, 50.0], size=(height, width))
    grown = linear(image, (rows, columns))
    np.testing.assert_allclose(grown, oracle.linear(image, rows, columns), atol=1e-12)
    assert image.min() <= grown.astype(np.float32).min()
    assert grown.astype(np.float32).max() <= image.max().astype(np.float32)


@pytest.mark.parametrize(
    ("source", "target"), [((4, 3), (16, 9)), ((5, 7), (5, 14)), ((16, 12), (4, 5)), ((3, 8), (12, 2))]
)
def test_linear_keeps_the_mean_where_one_size_divides_the_other_or_an_axis_shrinks(source, target):
    image = np.random.default_rng(0).exponential(size=(3, *source))
    np.testing.assert_allclose(linear(image, target).mean((1, 2)), image.mean((1, 2)), rtol=1e-12)


@pytest.mark.parametrize(("source", "target"), [((16, 12), (64, 48)), ((7, 5), (7, 11)), ((1, 1), (4, 4))])
def test_linear_equals_torch_where_it_grows(source, target):
    torch = pytest.importorskip("torch", reason="the comparison with torch needs torch")
    image = np.random.default_rng(0).normal(size=(2, 3, *source))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image), size=target, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(linear(image, target), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("source", "target"), [((16, 12), (64, 48)), ((64, 48), (32, 24)), ((7, 5), (7, 11)), ((1, 1), (4, 4))]
)
def test_bicubic_equals_torch(source, target):
    torch = pytest.importorskip("torch", reason="the comparison with torch needs torch")
    image = np.random.default_rng(0).normal(size=(2, 3, *source))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image), size=target, mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(bicubic(image, target), expected.numpy(), atol=1e-12)


@given(SIDES, SIDES, SIDES, SIDES)
def test_a_constant_stays_exactly_constant_in_float32(height, width, rows, columns):
    for resize in (bicubic, linear, area):
        assert (resize(np.ones((height, width)), (rows, columns)).astype(np.float32) == 1).all()


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 4), st.integers(1, 4), st.integers(0, 999))
def test_area_is_the_block_mean(rows, columns, by, across, seed):
    image = np.random.default_rng(seed).random((rows * by, columns * across))
    blocks = image.reshape(rows, by, columns, across).mean((1, 3))
    np.testing.assert_allclose(area(image, (rows, columns)), blocks, atol=1e-12)
    np.testing.assert_allclose(area(image, (3, 5)).mean(), image.mean(), atol=1e-12)
