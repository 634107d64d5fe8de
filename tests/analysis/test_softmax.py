from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analysis.reduction import softmax
from i2am.analysis.reduction.logits import Logits
from i2am.analysis.reduction.softmax import weighted_means
from i2am.analysis.reduction.weights import Weights
from tests.analysis import oracle

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def ones(count):
    return np.ones((1, count), np.float32)


def weights(g2r, r2g, **more):
    return Weights(g2r.shape[1], r2g.shape[1], g2r, r2g, **more)


def normalised(values, axis):
    """Softmax in double precision."""
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def both(scores):
    found = weighted_means(Logits(scores=scores), weights(ones(scores.shape[2]), ones(scores.shape[3])))
    return found.g2r[:, :, 0], found.r2g[:, :, 0]


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
    lse = rng.normal(size=(3, 4, 60)).astype(np.float32) + 9
    logits = replace(logits, lse=lse, norms=rng.random((3, 4, 70), np.float32))
    random = (rng.random((count, size)).astype(np.float32) for count, size in ((2, 60), (3, 70), (2, 70)))
    asked = Weights(60, 70, *random, joint=True, normed=True)
    whole = weighted_means(logits, asked)
    monkeypatch.setattr(softmax, "WORK_BYTES", work)
    monkeypatch.setattr(softmax, "CACHE_BYTES", cache)
    tiled = weighted_means(logits, asked)
    for found, expected in zip(tiled, whole, strict=True):
        assert expected.size
        np.testing.assert_allclose(found, expected, rtol=3e-5, atol=1e-6)


def test_weights_choose_queries_and_tokens():
    scores = np.random.default_rng(0).normal(size=(1, 2, 6, 5)).astype(np.float32)
    gen = np.zeros((2, 6), np.float32)
    gen[0, 2] = gen[1, [1, 4]] = 1
    ref = np.zeros((1, 5), np.float32)
    ref[0, 3] = 1
    found = weighted_means(Logits(scores=scores), weights(gen, ref))
    g2r, r2g = found.g2r, found.r2g
    row = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True) * 5
    column = np.exp(scores) / np.exp(scores).sum(-2, keepdims=True) * 6
    np.testing.assert_allclose(g2r[0, :, 0], row[0, :, 2], rtol=1e-5)
    np.testing.assert_allclose(g2r[0, :, 1], (row[0, :, 1] + row[0, :, 4]) / 2, rtol=1e-5)
    np.testing.assert_allclose(r2g[0, :, 0], column[0, :, :, 3], rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    SHAPES, st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([0.1, 3.0, 40.0, 400.0]), st.booleans()
)
def test_shares_of_a_joint_softmax_and_of_token_sets(shape, others, seed, spread, as_factors):
    rng = np.random.default_rng(seed)
    steps, heads, gen, ref = shape
    query = rng.normal(size=(steps, heads, gen, 3)) * spread
    key = rng.normal(size=(1, heads, ref + others, 3)) + 5
    every = np.matmul(query, key.swapaxes(-1, -2))
    joint = normalised(every, -1)[..., :ref]
    own = normalised(every[..., :ref], -1)
    lse = np.logaddexp.reduce(every, axis=-1).astype(np.float32)
    chosen = (rng.random((2, ref)) < 0.5).astype(np.float32)
    chosen[0, 0] = 1
    chosen[1] = 0  # an empty set has no share
    queries = rng.random((1, gen)).astype(np.float32) + 0.1
    if as_factors:
        logits = Logits(query=query, key=key[:, :, :ref], lse=lse)
    else:
        logits = Logits(scores=every[..., :ref].astype(np.float32), lse=lse)
    found = weighted_means(logits, Weights(gen, ref, queries, tokens=chosen, joint=True))
    loose = {"rtol": 1e-3 * max(1, spread / 10), "atol": 1e-5 * max(1, spread)}  # float32 logits of `spread`
    np.testing.assert_allclose(found.share[:, :, 0], joint.sum(-1), **loose)
    np.testing.assert_allclose(found.share[:, :, 1], joint @ chosen[0], **loose)
    np.testing.assert_allclose(found.daam[:, :, 0], own @ chosen[0] * ref / chosen[0].sum(), **loose)
    mean = np.einsum("g,thgr->thr", queries[0] / queries.sum(), joint) * ref
    np.testing.assert_allclose(found.g2r_joint[:, :, 0], mean, **loose)
    assert np.isnan(found.share[:, :, 2]).all()
    assert np.isnan(found.daam[:, :, 1]).all()
    assert found.r2g.shape == (steps, heads, 0, gen)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.integers(0, 2**31), st.sampled_from([1.0, 8.0, 60.0]), st.sampled_from([0.0, 5.0, 100.0]))
def test_factors_and_scores_agree_whatever_the_keys_have_in_common(shape, seed, spread, common):
    rng = np.random.default_rng(seed)
    steps, heads, gen, ref = shape
    query = rng.normal(size=(steps, heads, gen, 4)).astype(np.float32) * np.float32(spread)
    key = rng.normal(size=(steps, heads, ref, 4)).astype(np.float32) + np.float32(common)
    exact = np.matmul(query.astype(np.float64), key.astype(np.float64).swapaxes(-1, -2))
    found = weighted_means(Logits(query=query, key=key), weights(ones(gen), ones(ref)))
    tolerance = {"rtol": 2e-5 + 3e-6 * spread * (10 + common), "atol": 1e-6}
    own = normalised(exact, -1).mean(axis=2) * ref
    other = normalised(exact, -2).mean(axis=3) * gen
    np.testing.assert_allclose(found.g2r[:, :, 0], own, **tolerance)
    np.testing.assert_allclose(found.r2g[:, :, 0], other, **tolerance)


def test_rows_whose_logits_are_alike_are_exactly_uniform():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 3, 50, 8)).astype(np.float16)
    key = np.broadcast_to(rng.normal(size=(1, 3, 1, 8)), (1, 3, 145, 8)).astype(np.float16)
    found = weighted_means(Logits(query=query, key=key, scale=0.3), weights(ones(50), ones(145)))
    assert (found.g2r == 1).all()


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
from i2am.analysis.reduction.logits import Logits
from i2am.analysis.reduction.softmax import weighted_means
from i2am.analysis.reduction.weights import Weights

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
    weighted_means(Logits(scores=np.zeros((1, 1, 4, 4), np.float32)), Weights(4, 4, one, one))
    print(before, seen, threads())
"""


def test_blas_is_held_to_one_thread_inside_and_restored_after():
    # In a process of its own: BLAS threads are the process's, and other tests leave theirs in any state.
    run = subprocess.run([sys.executable, "-c", BLAS], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[0] == "[2] [[1]] [2]"


TURNS = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from threadpoolctl import threadpool_info, threadpool_limits
from i2am.analysis.reduction.blas_threads import one_blas_thread
import numpy

def threads():
    return [pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]]

def inside():
    with one_blas_thread():
        return threads()

def overlapping(met):
    with one_blas_thread():
        met.wait()
        return threads()

first, second = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
with threadpool_limits(limits=2, user_api="blas"):
    met = Barrier(2)
    both = [first.submit(overlapping, met), second.submit(overlapping, met)]
    print([future.result() for future in both], threads())
    for _ in range(2):
        print(first.submit(inside).result(), threads(), second.submit(inside).result(), threads(), inside())
with threadpool_limits(limits=2, user_api="blas"):
    print(threads())
"""


def test_every_thread_is_held_to_one_blas_thread_whoever_came_first():
    run = subprocess.run([sys.executable, "-c", TURNS], capture_output=True, text=True, check=True)
    turn = "[1] [2] [1] [2] [1]"
    assert run.stdout.splitlines() == ["[[1], [1]] [2]", turn, turn, "[2]"]
