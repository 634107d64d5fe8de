"""What a sink refuses, and that a refused sample leaves nothing behind."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

import i2am
from i2am.storage.errors import AlreadyExists, InputError, ShapeMismatch, UnknownName
from i2am.storage.format.layer_spec import LayerSpec
from tests.storage.synthetic import IMAGES, LAYERS, TIMESTEPS, factors, fill, image, write_run

FACTORS, JOINT, SCORES = LAYERS


@pytest.fixture
def writer(tmp_path):
    with i2am.create_run(tmp_path / "r.zarr", LAYERS, TIMESTEPS, ["a"], image_shapes=IMAGES) as writer:
        yield writer


def files(path):
    return sorted(os.path.relpath(os.path.join(d, f), path) for d, _, names in os.walk(path) for f in names)


def q(spec=FACTORS, dtype=None):
    return factors(spec, "a", 0)[0].astype(dtype or factors(spec, "a", 0)[0].dtype)


def k(spec=FACTORS):
    return factors(spec, "a", 0)[1]


BAD = {
    "unknown layer": (
        ("down.0.attn", 0, {"query": q()}),
        UnknownName,
        "unknown layer 'down.0.attn'.*did you mean 'down.0.attn2'",
    ),
    "step too large": (
        (FACTORS.name, 5, {"query": q()}),
        InputError,
        "step; expected an integer from 0 to 4; got 5",
    ),
    "negative step": (
        (FACTORS.name, -1, {"query": q()}),
        InputError,
        "step; expected an integer from 0 to 4; got -1",
    ),
    "step no integer": ((FACTORS.name, 1.0, {"query": q()}), InputError, "step; expected an integer"),
    "nothing": ((FACTORS.name, 0, {}), InputError, "no array; expected query and key, or scores"),
    "query shape": (
        (FACTORS.name, 0, {"query": q()[:, :-1]}),
        ShapeMismatch,
        r"layer 'down.0.attn2': query; expected \(4, 24, 8\) \[head, gen, dim\]; got \(4, 23, 8\)",
    ),
    "key shape": (
        (FACTORS.name, 0, {"key": k()[:-1]}),
        ShapeMismatch,
        r"key; expected \(4, 13, 8\) \[head, ref, dim\]",
    ),
    "bits": (
        (FACTORS.name, 0, {"query": q().view(np.uint16)}),
        ShapeMismatch,
        "query: dtype; expected float16.*got uint16",
    ),
    "scores for factors": (
        (FACTORS.name, 0, {"scores": np.zeros((4, 24, 13), np.float16)}),
        InputError,
        'expected query and key: the layer is stored as factors; declare it with representation="scores"',
    ),
    "scores and factors": (
        (SCORES.name, 0, {"scores": np.zeros((3, 6, 1), np.float32), "query": q(SCORES)}),
        InputError,
        "both scores and factors",
    ),
    "query alone for scores": (
        (SCORES.name, 0, {"query": q(SCORES)}),
        InputError,
        "key of step 0 is missing",
    ),
    "lse of a plain layer": (
        (FACTORS.name, 0, {"lse": np.zeros((4, 24), np.float32)}),
        InputError,
        "declare it with lse=True",
    ),
    "lse shape": (
        (JOINT.name, 0, {"lse": np.zeros((2, 5), np.float32)}),
        ShapeMismatch,
        r"lse; expected \(2, 6\) \[head, gen\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_and_leave_nothing(writer, case):
    (layer, step, arrays), kind, message = BAD[case]
    before = files(writer.path)
    with pytest.raises(kind, match=message), writer.sample("a") as sink:
        sink.put(layer, step, **arrays)
    assert files(writer.path) == before
    assert not os.path.exists(f"{writer.path}/.staging/a")


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float16", np.float32(0.1)),
        ("float16", np.float32(1e6)),
        ("bfloat16", np.float32(0.1)),
        ("bfloat16", np.float16(0.1)),
        ("float32", np.float64(0.1)),
        ("float16", np.float64(0.1)),
    ],
)
def test_bits_are_never_lost_silently(tmp_path, dtype, values):
    spec = LayerSpec("l", 1, 2, (1, 2), (1, 1), representation="factors", dtype=dtype)
    message = f"layer 'l': query: float.. values; expected values that {dtype} holds exactly"
    with i2am.create_run(tmp_path / "r.zarr", [spec], [0], ["a"]) as writer:
        with pytest.raises(ShapeMismatch, match=message), writer.sample("a") as sink:
            sink.put("l", 0, query=np.full((1, 2, 2), values), key=np.zeros((1, 1, 2), np.float16))
        assert writer.missing == ("a",)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_wider_arrays_that_hold_the_same_values_are_taken(tmp_path, dtype):
    spec = LayerSpec("l", 1, 2, (1, 2), (1, 1), representation="factors", dtype=dtype)
    values = np.array([[[0.5, -2.0], [np.nan, np.inf]]], np.float64)
    with i2am.create_run(tmp_path / "r.zarr", [spec], [0], ["a"]) as writer, writer.sample("a") as sink:
        sink.put("l", 0, query=values, key=np.zeros((1, 1, 2), np.float32))
    assert np.array_equal(i2am.open_run(tmp_path / "r.zarr").read("l", "a").query[0], values, equal_nan=True)


def test_a_static_key_that_changes_is_refused(writer):
    message = "layer 'down.0.attn2': the key changes over time; .* declare the layer with static_key=False"
    changed = k().copy()
    changed[0, 0, 0] = -changed[0, 0, 0]
    with pytest.raises(InputError, match=message), writer.sample("a") as sink:
        sink.put(FACTORS.name, 0, query=q(), key=k())
        sink.put(FACTORS.name, 1, query=q(), key=changed)


def test_a_step_given_twice_is_refused(writer):
    with pytest.raises(InputError, match="query of step 2 was given before"), writer.sample("a") as sink:
        sink.put(FACTORS.name, 2, query=q(), key=k())
        sink.put(FACTORS.name, 2, query=q(), key=k())


def test_an_incomplete_sample_does_not_commit_and_says_what_is_missing(writer):
    before = files(writer.path)
    message = re.escape(
        "nothing for down.0.attn2 query step 3, 4 | mid.attn2 key step 0, 1, 2, 3, 4 | up.0.attn2 scores"
    )
    with (
        pytest.raises(InputError, match=f"sample 'a' is not complete; .*{message}"),
        writer.sample("a") as sink,
    ):
        for step in range(5):
            if step < 3:
                sink.put(FACTORS.name, step, query=q(), key=k())
            sink.put(JOINT.name, step, query=q(JOINT), lse=np.zeros((2, 6), np.float32))
            if step > 0:
                sink.put(SCORES.name, step, query=q(SCORES), key=k(SCORES))
    assert files(writer.path) == before


def test_images(writer):
    ok = image("mask", "a", IMAGES["mask"])
    with writer.sample("a") as sink:
        with pytest.raises(
            UnknownName, match=r"unknown image 'maks'; .*declare it with add_image or image_shapes"
        ):
            sink.put_image("maks", ok)
        with pytest.raises(
            ShapeMismatch,
            match=r"image 'mask'; expected uint8 \(6, 8, 1\) \[y, x, channel\]; got uint8 \(6, 8\)",
        ):
            sink.put_image("mask", ok[..., 0])
        with pytest.raises(ShapeMismatch, match="got float64"):
            sink.put_image("mask", ok.astype(float))
        sink.put_image("mask", ok)
        with pytest.raises(InputError, match="image 'mask' of sample 'a' was given before"):
            sink.put_image("mask", ok)
        fill(sink, LAYERS, range(5))
    run = i2am.open_run(writer.path)
    assert np.array_equal(run.image("mask", "a"), ok)
    with pytest.raises(UnknownName, match="unknown image 'generated'; expected one of 'mask'"):
        run.image("generated", "a")


def test_images_may_be_added_later_and_any_number_of_times(writer):
    writer.add_image("extra", (2, 3, 4))
    writer.add_image("extra", (2, 3, 4))
    with pytest.raises(ShapeMismatch, match="image 'extra'; expected the shape it was declared with"):
        writer.add_image("extra", (2, 3, 3))
    with pytest.raises(ShapeMismatch, match=r"declared with, \(6, 8, 1\); got \(6, 8, 3\)"):
        writer.add_image("mask", (6, 8, 3))
    with pytest.raises(InputError, match=r"image 'x': shape; expected \(y, x, channel\)"):
        writer.add_image("x", (2, 3))
    with writer.sample("a") as sink:
        sink.put_image("extra", image("extra", "a", (2, 3, 4)))
        fill(sink, LAYERS, range(5))
    run = i2am.open_run(writer.path)
    assert run.images == ("generated", "mask", "extra")
    assert np.array_equal(run.image("extra", "a"), image("extra", "a", (2, 3, 4)))
    run.check("a")
    assert i2am.verify(writer.path).ok


def test_annotations_go_into_the_record(writer):
    with writer.sample("a") as sink:
        sink.annotate(seed=3, prompt="<b>&</b>")
        sink.annotate(seed=4, seconds=0.5)
        endless = []
        endless.append(endless)
        with pytest.raises(InputError, match="attributes or annotations; expected values of finite depth"):
            sink.annotate(bad=endless)
        sink.annotate(gone=float("nan"), folder=Path("a"))
        fill(sink, LAYERS, range(5))
    record = i2am.open_run(writer.path).record("a")
    assert record["annotations"] == {
        "seed": 4,
        "prompt": "<b>&</b>",
        "seconds": 0.5,
        "gone": "nan",
        "folder": "a",
    }
    assert (record["sample"], record["index"], record["run_id"]) == ("a", 0, writer.run_id)


def test_a_sink_is_closed_after_its_block(writer):
    with writer.sample("a") as sink:
        fill(sink, LAYERS, range(5))
    for use in (
        lambda: sink.put(FACTORS.name, 0, query=q()),
        lambda: sink.annotate(a=1),
        lambda: sink.commit(),
    ):
        with pytest.raises(InputError, match="sample 'a' is closed"):
            use()


def test_committed_and_unknown_samples_are_refused(tmp_path):
    write_run(tmp_path / "r.zarr", ["a"])
    with i2am.resume_run(tmp_path / "r.zarr") as writer:
        with (
            pytest.raises(
                AlreadyExists, match=r"sample 'a' of .* is committed; go through RunWriter.missing"
            ),
            writer.sample("a"),
        ):
            pass
        with pytest.raises(UnknownName, match="unknown sample 'z'; expected one of 'a'"), writer.sample("z"):
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": []}, "samples; expected at least one id; got none"),
        ({"samples": "abc"}, "samples; expected a list of ids; got 'abc'"),
        ({"samples": ["a", "b", "a"]}, "samples; expected ids that differ; got 'a' twice"),
        ({"samples": ["a", ""]}, "sample id; expected a non-empty text"),
        ({"timesteps": []}, "timesteps; expected at least one"),
        ({"timesteps": [1, "2"]}, "timesteps; expected finite numbers; got '2'"),
        ({"timesteps": [float("nan")]}, "timesteps; expected finite numbers"),
        ({"layers": []}, "layers; expected at least one LayerSpec"),
        ({"layers": [FACTORS, FACTORS]}, "layers; expected names that differ; got 'down.0.attn2' twice"),
        ({"attrs": {"digest": 1}}, "attrs; expected names other than the store's own; got digest"),
        ({"image_shapes": {"a/b": (1, 1, 1)}}, "image name; expected one path segment"),
        ({"image_shapes": {"a": (0, 1, 1)}}, "image 'a': shape"),
        ({"codec": "blosc-lz4"}, "unknown codec 'blosc-lz4'; .*did you mean"),
        ({"shard_bytes": 0}, "shard_bytes; expected at least 1"),
    ],
)
def test_impossible_runs_are_refused_before_anything_is_written(tmp_path, changes, message):
    declared = {"layers": LAYERS, "timesteps": TIMESTEPS, "samples": ["a"], **changes}
    with pytest.raises(InputError, match=message):
        i2am.create_run(tmp_path / "r.zarr", **declared)
    assert not list(tmp_path.iterdir())


def test_numpy_numbers_are_timesteps(tmp_path):
    steps = [*np.array([981, 1], np.int64), np.float32(0.5)]
    i2am.create_run(tmp_path / "r.zarr", LAYERS, steps, ["a"]).close()
    assert i2am.open_run(tmp_path / "r.zarr").timesteps == (981, 1, 0.5)


def test_something_at_the_path_is_never_overwritten(tmp_path):
    write_run(tmp_path / "r.zarr", ["a"])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for name in ("r.zarr", "file", "full"):
        before = files(tmp_path)
        with pytest.raises(AlreadyExists, match=f"{name} already exists; choose another path"):
            i2am.create_run(tmp_path / name, LAYERS, TIMESTEPS, ["a"])
        assert files(tmp_path) == before
    (tmp_path / "empty").mkdir()
    i2am.create_run(tmp_path / "empty", LAYERS, TIMESTEPS, ["a"]).close()
    assert i2am.open_run(tmp_path / "empty").declared == ("a",)


def test_resuming_checks_what_it_is_given(tmp_path):
    i2am.create_run(tmp_path / "r.zarr", LAYERS, TIMESTEPS, ["a"]).close()
    i2am.resume_run(tmp_path / "r.zarr", LAYERS, TIMESTEPS).close()
    with pytest.raises(InputError, match="timesteps; expected those of the run"):
        i2am.resume_run(tmp_path / "r.zarr", LAYERS, [1, 2])
    with pytest.raises(
        InputError, match=r"layers; expected those of the run; got a difference in up.0.attn2"
    ):
        i2am.resume_run(tmp_path / "r.zarr", LAYERS[:2])
    other = [
        LAYERS[0],
        LAYERS[1],
        LayerSpec("up.0.attn2", 5, 16, (3, 2), (0, 0), 1, representation="scores", dtype="float32"),
    ]
    with pytest.raises(InputError, match=r"layer 'up.0.attn2': heads; expected 3 as in the run; got 5"):
        i2am.resume_run(tmp_path / "r.zarr", other)


def test_a_buffer_may_be_used_again_after_put(tmp_path):
    spec = LayerSpec("l", 2, 4, (3, 3), (2, 2), dtype="float32", representation="factors")
    query, key = np.empty((2, 9, 4), np.float32), np.ones((2, 4, 4), np.float32)
    with (
        i2am.create_run(
            tmp_path / "r.zarr", [spec], [2, 1, 0], ["a"], image_shapes={"mask": (2, 2, 1)}
        ) as writer,
        writer.sample("a") as sink,
    ):
        for step in range(3):
            query[:] = step
            sink.put("l", step, query=query, key=key)
        query[:] = key[:] = -1
        image = np.full((2, 2, 1), 7, np.uint8)
        sink.put_image("mask", image)
        image[:] = 0
    run = i2am.open_run(tmp_path / "r.zarr")
    block = run.read("l", "a")
    assert [float(block.query[step].mean()) for step in range(3)] == [0, 1, 2]
    assert (block.key == 1).all()
    assert (run.image("mask", "a") == 7).all()
