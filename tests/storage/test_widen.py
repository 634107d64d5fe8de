from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.storage.format.half_float import widened

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def same_bits(left, right):
    assert left.dtype == right.dtype == np.float32
    np.testing.assert_array_equal(left.view(np.uint32), right.view(np.uint32))


def test_every_finite_number_converts_to_the_bit():
    finite = EVERY[np.isfinite(EVERY)]
    same_bits(widened(finite), finite.astype(np.float32))


def test_infinities_and_nan_survive():
    np.testing.assert_array_equal(widened(EVERY), EVERY.astype(np.float32))


@given(st.floats(2**-20, 2**10, width=32), st.sampled_from([np.float16, np.float32, np.float64]))
def test_a_factor_rounds_once(factor, dtype):
    values = np.linspace(-60000, 60000, 999).astype(dtype)
    with np.errstate(over="ignore"):
        same_bits(widened(values, factor), values.astype(np.float32) * np.float32(factor))


@pytest.mark.parametrize("factor", [0.0, 1e30, float("inf")])
def test_factors_out_of_the_fast_range(factor):
    values = np.array([0.5, -2.0, 3.0], np.float16)
    with np.errstate(over="ignore"):
        same_bits(widened(values, factor), values.astype(np.float32) * np.float32(factor))


def test_views_and_shapes():
    values = EVERY[: 1 << 14].reshape(4, 8, -1)
    same_bits(widened(values[::2, :, ::3]), values[::2, :, ::3].astype(np.float32))
    assert widened(np.empty((0, 3), np.float16)).shape == (0, 3)
    assert not np.shares_memory(widened(np.ones(3, np.float32)), np.ones(3, np.float32))
