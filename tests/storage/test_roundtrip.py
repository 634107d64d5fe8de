"""What goes in comes out: any geometry, dtype, representation, codec, cut, order of steps, threads."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import i2am
from i2am.storage.format.codecs import CODECS
from i2am.storage.format.layer_spec import LayerSpec
from tests.storage.synthetic import (
    LAYERS,
    check_values,
    factors,
    fill,
    image,
    logits,
    lse,
    round_to,
    write_run,
)

SPECS = st.builds(
    LayerSpec,
    name=st.just("l"),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 9),
    gen_grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    ref_grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    ref_prefix=st.integers(0, 2),
    representation=st.sampled_from(["auto", "factors", "scores"]),
    static_key=st.booleans(),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    scale=st.sampled_from([None, 1.0, 0.3]),
    lse=st.booleans(),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    spec=SPECS,
    steps=st.integers(1, 7),
    codec=st.sampled_from([None, *CODECS]),
    shard_bytes=st.sampled_from([None, 1, 500, 4000]),
    threads=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_any_declaration(tmp_path_factory, spec, steps, codec, shard_bytes, threads, order):
    path = tmp_path_factory.mktemp("run") / "r.zarr"
    timesteps = list(range(steps, 0, -1))
    options = {"codec": codec, "shard_bytes": shard_bytes, "threads": threads, "queue_bytes": 1000}
    with i2am.create_run(path, [spec], timesteps, ["a", "b"], **options) as writer:
        for sample in order.sample(["a", "b"], 2):
            with writer.sample(sample) as sink:
                fill(sink, [spec], order.sample(range(steps), steps))
    run = i2am.open_run(path)
    assert run.samples == ("a", "b")
    check_values(run, [spec])
    if spec.lse:
        got = run.lse("l").compute()
        assert all(
            np.array_equal(got[i, t], lse(spec, s, t)) for i, s in enumerate("ab") for t in range(steps)
        )
    assert i2am.verify(path).ok


def test_plain_zarr_sees_the_true_numbers(tmp_path):
    run = write_run(tmp_path / "r.zarr")
    group = zarr.open_group(tmp_path / "r.zarr", mode="r")
    for spec in LAYERS:
        place = group[f"attention/{spec.name}"]
        assert place.attrs["gen_grid"] == list(spec.gen_grid)
        for i, sample in enumerate(run.samples):
            for step in range(len(run.timesteps)):
                if spec.representation == "scores":
                    assert np.allclose(place["scores"][i, step], logits(spec, sample, step), atol=1e-5)
                    continue
                query, key = factors(spec, sample, step)
                assert np.array_equal(place["query"][i, step], query)
                assert np.array_equal(place["key"][i, 0 if spec.static_key else step], key)
    for i, sample in enumerate(run.samples):
        assert np.array_equal(group["images/generated"][i], image("generated", sample, (6, 8, 3)))
        assert np.array_equal(run.image("mask", sample), image("mask", sample, (6, 8, 1)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_factors_and_scores_give_the_same_values(tmp_path, dtype):
    runs = {}
    for kind in ("factors", "scores"):
        spec = LayerSpec("l", 3, 8, (4, 5), (3, 3), 1, representation=kind, dtype=dtype)
        runs[kind] = write_run(tmp_path / f"{kind}.zarr", ["a"], [spec], images=None).scores("l").compute()
    tolerance = 1e-3 if dtype == "float16" else 1e-6
    assert np.allclose(runs["factors"], runs["scores"], rtol=tolerance, atol=tolerance)


def test_scores_may_be_given_directly(tmp_path):
    spec = LayerSpec("l", 2, 8, (4, 4), (3, 3), representation="scores", dtype="bfloat16")
    with i2am.create_run(tmp_path / "r.zarr", [spec], [1, 0], ["a"]) as writer, writer.sample("a") as sink:
        for step in range(2):
            sink.put("l", step, scores=logits(spec, "a", step).astype(np.float32))
    assert np.array_equal(
        i2am.open_run(tmp_path / "r.zarr").scores("l").compute()[0, 1],
        logits(spec, "a", 1).astype(np.float32),
    )


def test_bfloat16_arrays_of_ml_dtypes_are_taken_as_they_are(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    spec = LAYERS[1]
    with i2am.create_run(tmp_path / "r.zarr", [spec], [1], ["a"]) as writer, writer.sample("a") as sink:
        query, key = (a.astype(ml_dtypes.bfloat16) for a in factors(spec, "a", 0))
        sink.put(spec.name, 0, query=query, key=key, lse=lse(spec, "a", 0))
    assert np.array_equal(
        i2am.open_run(tmp_path / "r.zarr").read(spec.name, "a").query[0], factors(spec, "a", 0)[0]
    )


def test_a_static_key_may_come_once_or_each_time(tmp_path):
    spec = LayerSpec("l", 2, 4, (2, 2), (2, 2), representation="factors")
    with i2am.create_run(tmp_path / "r.zarr", [spec], [2, 1, 0], ["once", "each", "late"]) as writer:
        for sample, given_at in (("once", {0}), ("each", {0, 1, 2}), ("late", {2})):
            with writer.sample(sample) as sink:
                for step in range(3):
                    query, key = factors(spec, sample, step)
                    sink.put("l", step, query=query, key=key.copy() if step in given_at else None)
    check_values(i2am.open_run(tmp_path / "r.zarr"), [spec])


def test_query_and_key_may_come_apart_where_factors_are_stored(tmp_path):
    spec = LayerSpec("l", 2, 4, (2, 2), (2, 2), representation="factors", static_key=False)
    with i2am.create_run(tmp_path / "r.zarr", [spec], [1, 0], ["a"]) as writer, writer.sample("a") as sink:
        for step in (1, 0):
            query, key = factors(spec, "a", step)
            sink.put("l", step, key=key)
            sink.put("l", step, query=query)
    check_values(i2am.open_run(tmp_path / "r.zarr"), [spec])


def test_nan_and_infinity_are_kept_and_counted(tmp_path):
    spec = LayerSpec("l", 1, 2, (2, 2), (2, 2), representation="factors")
    with i2am.create_run(tmp_path / "r.zarr", [spec], [0], ["a"]) as writer, writer.sample("a") as sink:
        query, key = factors(spec, "a", 0)
        query[0, 0] = [np.nan, np.inf]
        query[0, 1, 0] = -np.inf
        sink.put("l", 0, query=query, key=key)
    run = i2am.open_run(tmp_path / "r.zarr")
    assert run.record("a")["nonfinite"] == {"attention/l/query": 3}
    assert np.array_equal(run.read("l", "a").query[0], query, equal_nan=True)


def test_selections_of_steps_and_heads(tmp_path):
    run = write_run(tmp_path / "r.zarr", ["a"], shard_bytes=300)
    spec = LAYERS[0]
    whole = run.read(spec.name, "a")
    for steps in ([4, 0, 2], slice(1, 4), [-1]):
        for heads in ([3, 1], slice(None, None, 2), None):
            part = run.read(spec.name, "a", steps, heads)
            rows = list(range(5))[steps] if isinstance(steps, slice) else [s % 5 for s in steps]
            columns = (
                list(range(4))
                if heads is None
                else list(range(4))[heads]
                if isinstance(heads, slice)
                else heads
            )
            assert np.array_equal(part.query, whole.query[rows][:, columns])
            assert np.array_equal(part.key, whole.key[:, columns])
    with pytest.raises(i2am.InputError, match="unknown step 5.*there are 5, from 0 to 4"):
        run.read(spec.name, "a", [5])


def test_large_heads_are_cut_and_put_together_again(tmp_path, monkeypatch):
    monkeypatch.setattr("i2am.storage.format.layout.MAX_CHUNK", 2000)
    monkeypatch.setattr("i2am.storage.format.layout.TARGET_CHUNK", 600)
    spec = LayerSpec("l", 6, 8, (5, 4), (4, 4), representation="factors")
    run = write_run(tmp_path / "r.zarr", ["a"], [spec], images=None)
    assert run._header.layouts["l"]["query"].chunk == (1, 1, 6, 20, 8)
    small = LayerSpec("l", 6, 32, (5, 4), (4, 4), representation="factors")
    run = write_run(tmp_path / "s.zarr", ["a"], [small], images=None)
    assert run._header.layouts["l"]["query"].chunk == (1, 1, 1, 20, 32)
    check_values(run, [small])
    assert np.array_equal(run.read("l", "a", [1], [4, 2]).query[0, 1], factors(small, "a", 1)[0][2])


def test_a_run_travels_to_other_processes(tmp_path):
    run = pickle.loads(pickle.dumps(write_run(tmp_path / "r.zarr")))
    check_values(run)
    assert len(pickle.dumps(run)) < 100_000


def test_rounding_helper_of_these_tests_is_exact():
    values = round_to(np.linspace(-3, 3, 99), "bfloat16")
    assert not (values.view(np.uint32) & 0xFFFF).any()


def test_a_run_travels_light_and_arrives_as_it_was(tmp_path):
    """Another process reads the header itself; the samples shown are those of the moment of opening."""
    samples = [f"sample-{number:04d}" for number in range(1000)]
    layer = i2am.LayerSpec("a", 1, 2, (1, 1), (1, 1))
    with i2am.create_run(tmp_path / "run.zarr", [layer], [1], samples) as writer:
        for sample in samples[1:4]:
            with writer.sample(sample) as sink:
                sink.put("a", 0, query=np.ones((1, 1, 2)), key=np.ones((1, 1, 2)))
        run = i2am.open_run(tmp_path / "run.zarr")
        with writer.sample(samples[7]) as sink:
            sink.put("a", 0, query=np.ones((1, 1, 2)), key=np.ones((1, 1, 2)))
    sent = pickle.dumps(run)
    assert len(sent) < 4000
    for _ in range(2):  # read, then remembered
        arrived = pickle.loads(sent)
        assert (arrived.samples, arrived.declared) == (tuple(samples[1:4]), tuple(samples))
        assert arrived.attrs == run.attrs
        assert arrived.fingerprint(samples[2]) == run.fingerprint(samples[2])
    shutil.rmtree(tmp_path / "run.zarr")
    with i2am.create_run(tmp_path / "run.zarr", [layer], [1], samples):
        pass
    i2am.storage.reading.run._HEADERS.clear()
    with pytest.raises(i2am.DamagedRun, match="another run than a moment ago"):
        pickle.loads(sent)
