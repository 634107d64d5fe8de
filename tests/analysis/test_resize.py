from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analysis.grids.resize import area, bicubic
from tests.analysis import oracle

SIDES = st.integers(1, 12)


@settings(deadline=None, max_examples=25)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 999))
def test_bicubic_equals_the_oracle(height, width, rows, columns, seed):
    image = np.random.default_rng(seed).normal(size=(height, width))
    np.testing.assert_allclose(
        bicubic(image, (rows, columns)), oracle.resize(image, rows, columns), atol=1e-12
    )


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
    for resize in (bicubic, area):
        assert (resize(np.ones((height, width)), (rows, columns)).astype(np.float32) == 1).all()


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 4), st.integers(1, 4), st.integers(0, 999))
def test_area_is_the_block_mean(rows, columns, by, across, seed):
    image = np.random.default_rng(seed).random((rows * by, columns * across))
    blocks = image.reshape(rows, by, columns, across).mean((1, 3))
    np.testing.assert_allclose(area(image, (rows, columns)), blocks, atol=1e-12)
    np.testing.assert_allclose(area(image, (3, 5)).mean(), image.mean(), atol=1e-12)
