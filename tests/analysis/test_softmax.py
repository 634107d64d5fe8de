from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import softmax
from analysis.softmax import Logits, project
from tests.analysis import oracle

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def ones(count):
    return np.ones((1, count), np.float32)


def both(scores):
    g2r, r2g = project(Logits(scores=scores), ones(scores.shape[2]), ones(scores.shape[3]))
    return g2r[:, :, 0], r2g[:, :, 0]


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(0, 2**31), st.sampled_from([0.1, 3.0, 40.0, 400.0]))
def test_equals_the_oracle_for_any_shape_and_spread(shape, seed, spread):
    scores = (np.random.default_rng(seed).normal(size=shape) * spread).astype(np.float32)
    g2r, r2g = both(scores)
    np.testing.assert_allclose(g2r, oracle.g2r(scores, 0), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(r2g, oracle.r2g(scores, 0), rtol=2e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.integers(0, 2**31))
def test_densities_sum_to_their_number_of_positions(shape, seed):
    scores = (np.random.default_rng(seed).normal(size=shape) * 5).astype(np.float32)
    g2r, r2g = both(scores)
    np.testing.assert_allclose(g2r.sum(-1), shape[3], rtol=1e-5)
    np.testing.assert_allclose(r2g.sum(-1), shape[2], rtol=1e-5)


@pytest.mark.parametrize("row_drop", [0.0, 50.0, 90.0, 500.0, 5000.0])
@pytest.mark.parametrize("column_drop", [0.0, 50.0, 90.0, 500.0, 5000.0])
def test_rows_and_columns_far_below_the_maximum(row_drop, column_drop):
    scores = np.random.default_rng(0).normal(size=(1, 1, 6, 5)).astype(np.float32)
    scores[..., 2, :] -= row_drop
    scores[..., :, 3] -= column_drop
    g2r, r2g = both(scores)
    np.testing.assert_allclose(g2r, oracle.g2r(scores, 0), rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(r2g, oracle.r2g(scores, 0), rtol=2e-5, atol=1e-7)


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.integers(0, 2**31), st.floats(-100, 100))
def test_a_constant_added_to_the_logits_changes_nothing(shape, seed, constant):
    scores = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    for plain, shifted in zip(both(scores), both(scores + np.float32(constant)), strict=True):
        np.testing.assert_allclose(plain, shifted, rtol=2e-4)


def test_permuting_heads_permutes_the_result():
    scores = np.random.default_rng(0).normal(size=(2, 5, 7, 6)).astype(np.float32)
    order = [3, 0, 4, 1, 2]
    for plain, permuted in zip(both(scores), both(scores[:, order]), strict=True):
        np.testing.assert_array_equal(plain[:, order], permuted)


@pytest.mark.parametrize("ref", [1, 4, 145, 257])
def test_uniform_attention_is_exactly_one(ref):
    for values in both(np.full((2, 3, 49, ref), 7.25, np.float32)):
        assert (values == 1).all()


@pytest.mark.parametrize(("work", "cache"), [(64 * 2**20, 2**20), (64 * 2**20, 2000), (100, 100), (1, 1)])
def test_tiles_do_not_matter(monkeypatch, work, cache):
    rng = np.random.default_rng(0)
    logits = Logits(query=rng.normal(size=(3, 4, 60, 8)), key=rng.normal(size=(1, 4, 70, 8)) * 4, scale=0.5)
    weights = rng.random((2, 60)).astype(np.float32), rng.random((3, 70)).astype(np.float32)
    whole = project(logits, *weights)
    monkeypatch.setattr(softmax, "WORK_BYTES", work)
    monkeypatch.setattr(softmax, "CACHE_BYTES", cache)
    for expected, got in zip(whole, project(logits, *weights), strict=True):
        np.testing.assert_allclose(got, expected, rtol=3e-5, atol=1e-6)


def test_weights_choose_queries_and_tokens():
    scores = np.random.default_rng(0).normal(size=(1, 2, 6, 5)).astype(np.float32)
    gen = np.zeros((2, 6), np.float32)
    gen[0, 2] = gen[1, [1, 4]] = 1
    ref = np.zeros((1, 5), np.float32)
    ref[0, 3] = 1
    g2r, r2g = project(Logits(scores=scores), gen, ref)
    row = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True) * 5
    column = np.exp(scores) / np.exp(scores).sum(-2, keepdims=True) * 6
    np.testing.assert_allclose(g2r[0, :, 0], row[0, :, 2], rtol=1e-5)
    np.testing.assert_allclose(g2r[0, :, 1], (row[0, :, 1] + row[0, :, 4]) / 2, rtol=1e-5)
    np.testing.assert_allclose(r2g[0, :, 0], column[0, :, :, 3], rtol=1e-5)


def test_minus_infinity_is_no_attention_and_other_infinities_are_nan():
    scores = np.zeros((1, 3, 4, 4), np.float32)
    scores[0, 0, 1, 2] = -np.inf
    scores[0, 1, 0, 0] = np.nan
    scores[0, 2, 0, 0] = np.inf
    g2r, r2g = both(scores)
    assert np.isfinite(g2r[0, 0]).all()
    assert np.isfinite(r2g[0, 0]).all()
    assert r2g[0, 0, 1] == pytest.approx(0.75)
    for values in (g2r, r2g):
        assert np.isnan(values[0, 1:]).all()


BLAS = """
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from analysis.softmax import Logits, project

def threads():
    "Of NumPy's own BLAS; other libraries in the process may bring theirs."
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return [pool["num_threads"] for pool in pools if "numpy" in pool["filepath"]]

seen, plain = [], Logits.part
def spy(self, steps, heads):
    seen.append(threads())
    return plain(self, steps, heads)
Logits.part = spy

one = np.ones((1, 4), np.float32)
with threadpool_limits(limits=2, user_api="blas"):
    before = threads()
    project(Logits(scores=np.zeros((1, 1, 4, 4), np.float32)), one, one)
    print(before, seen, threads())
"""


def test_blas_is_held_to_one_thread_inside_and_restored_after():
    # In a process of its own: BLAS threads are the process's, and other tests leave theirs in any state.
    run = subprocess.run([sys.executable, "-c", BLAS], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[0] == "[2] [[1]] [2]"
