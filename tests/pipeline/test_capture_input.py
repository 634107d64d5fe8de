"""What a capture is given: taken whatever its kind, or refused in one line before anything is generated."""

from __future__ import annotations

from collections import UserList
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from PIL import Image

from i2am.pipeline.capture import capture
from i2am.pipeline.jobs import Call, run_job
from i2am.storage.errors import InputError, NotFound, ShapeMismatch, UnknownName
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.pipeline import models
from tests.pipeline.test_capture import generate, record

IDS = {
    "array": np.array(["a", "b"]),
    "series": pl.Series(["a", "b"]),
    "pandas": pd.Series(["a", "b"], index=[7, 8]),
    "tuple": ("a", "b"),
    "keys": {"a": 1, "b": 2}.keys(),
    "a list of its own": UserList(["a", "b"]),
}


@pytest.mark.parametrize("kind", [*IDS, "generator"])
def test_samples_of_any_kind(tmp_path, kind):
    ids = (id for id in "ab") if kind == "generator" else IDS[kind]
    with capture(models.painter(), tmp_path / "r.zarr", ids, steps=0, layers=0) as cap:
        assert cap.declared == cap.missing == ("a", "b")
        assert all(type(id) is str for id in cap.declared)
        with cap.samples(iter(["a", "b"]), keep=np.array(["b"])):
            generate(cap._hooks._pipe, 2)
    assert open_run(tmp_path / "r.zarr").samples == ("b",)


@pytest.mark.parametrize(
    "wrong", ["abc", 5, [1, 2], [None], ["a", float("nan")], np.array([1]), [b"a"], [["a"]]]
)
def test_samples_that_are_no_ids(tmp_path, wrong):
    with pytest.raises(
        InputError, match="samples; expected a list of ids|sample id; expected a non-empty"
    ) as caught:
        capture(models.painter(), tmp_path / "r.zarr", wrong)
    assert "\n" not in str(caught.value)


SELECTIONS = {
    "array": np.array([0, -1]),
    "series": pl.Series([0, -1]),
    "pandas": pd.Series([0, -1], index=[7, 8]),
    "tensor": torch.tensor([0, -1]),
    "numpy integers": [np.int64(0), np.int8(-1)],
}


@pytest.mark.parametrize("kind", [*SELECTIONS, "generator"])
@pytest.mark.parametrize("axis", ["layers", "steps", "heads"])
def test_selections_of_any_kind(tmp_path, kind, axis):
    wanted = iter([0, -1]) if kind == "generator" else SELECTIONS[kind]
    record(models.painter(), tmp_path / "r.zarr", **{axis: wanted})
    record(models.painter(), tmp_path / "plain.zarr", **{axis: [0, -1]})
    run, plain = open_run(tmp_path / "r.zarr"), open_run(tmp_path / "plain.zarr")
    assert list(run.layers.values()) == list(plain.layers.values())
    assert run.timesteps == plain.timesteps
    assert run.attrs["selection"] == plain.attrs["selection"]


@pytest.mark.parametrize("axis", ["layers", "steps", "heads"])
@pytest.mark.parametrize(
    "wrong",
    [True, [True, False], np.array([True]), 1.5, [0.0], torch.tensor([0.5]), None.__class__, [None], "0:2"],
)
def test_selections_that_are_none(tmp_path, axis, wrong):
    with pytest.raises(
        InputError, match=rf"{axis}; expected an index, a slice|unknown layer '0:2'"
    ) as caught:
        capture(models.painter(), tmp_path / "r.zarr", ["a"], **{axis: wrong})
    assert "\n" not in str(caught.value)
    assert wrong != "0:2" or axis == "layers" or "write slice(0, 2)" in str(caught.value)


def test_numpy_scalars_slices_and_single_roles(tmp_path):
    record(models.painter(), tmp_path / "plain.zarr")
    options = {"steps": slice(np.int64(0), np.int64(2)), "layers": np.int64(1), "roles": "cond"}
    times = iter(np.array(open_run(tmp_path / "plain.zarr").timesteps))
    record(models.painter(), tmp_path / "r.zarr", timesteps=times, **options)
    run = open_run(tmp_path / "r.zarr")
    assert (len(run.timesteps), len(run.layers), run.attrs["roles"]) == (2, 1, ["cond"])
    assert run.attrs["selection"]["steps"] == {"start": 0, "stop": 2, "step": None}


def test_an_argument_that_does_not_exist_is_found_before_the_model_runs(tmp_path):
    with pytest.raises(UnknownName, match="argument of capture 'sampels'; .*did you mean 'samples'"):
        capture(models.painter(), tmp_path / "r.zarr", sampels=["a"])
    with pytest.raises(InputError, match="timesteps; expected finite numbers"):
        capture(models.painter(), tmp_path / "r.zarr", ["a"], timesteps=[float("nan")])


def test_images_are_known_by_name_and_fit(tmp_path):
    with capture(models.painter(), tmp_path / "r.zarr", ["a"]) as cap:
        with (
            pytest.raises(UnknownName, match="image 'referense'; .*did you mean 'reference'"),
            cap.sample("a", referense=1),
        ):
            pass
        with (
            pytest.raises(UnknownName, match="keep an image of your own with images="),
            cap.sample("a", xyz=1),
        ):
            pass
        with (
            pytest.raises(
                ShapeMismatch, match="sample 'a': mask; expected the source's size, 20×24 pixels; got 20×20"
            ),
            cap.sample("a", source=models.picture(1, 24, 20), mask=models.hole()),
        ):
            pass
        with (
            pytest.raises(ShapeMismatch, match="reference_mask; expected the reference's size"),
            cap.sample("a", reference=models.picture(1, 24, 20), reference_mask=models.hole()),
        ):
            pass
        with (
            pytest.raises(NotFound, match="image nowhere.png does not exist"),
            cap.sample("a", source="nowhere.png"),
        ):
            pass
        with pytest.raises(InputError, match="image name"), cap.sample("a", images={"a/b": models.hole()}):
            pass
        with (
            pytest.raises(InputError, match="expected 1, one for each id; got 2"),
            cap.samples(["a"], source=[models.picture(1)] * 2),
        ):
            pass


def test_names_from_outside_are_names(tmp_path):
    """Images and notes whose names are those of parameters, files and tensors as images."""
    models.hole().save(tmp_path / "hole.png")
    names = ("self", "id", "ids", "images", "named", "keep", "seconds")
    with (
        capture(models.painter(), tmp_path / "r.zarr", ["a"]) as cap,
        cap.sample(
            "a",
            images=dict.fromkeys(names, models.picture(3)),
            mask=tmp_path / "hole.png",
            source=str(tmp_path / "hole.png"),
        ) as s,
    ):
        s.generated = torch.from_numpy(generate(cap._hooks._pipe)[0]).permute(2, 0, 1)
        s.annotate({"self": 1, "notes": "x", "seconds": "soon"}, more=2)
        s.annotate(self=3)
    run = open_run(tmp_path / "r.zarr")
    record_ = run.record("a")
    assert set(record_["images"]) == {*names, "mask", "source", "generated"}
    assert record_["annotations"] == {"self": 3, "notes": "x", "seconds": "soon", "more": 2}
    assert run.image("mask", "a").shape == (20, 20, 1)
    assert verify(tmp_path / "r.zarr").ok


def test_a_job_takes_texts_of_any_name(tmp_path):
    texts = {name: name for name in ("seconds", "self", "images", "id", "seed", "notes", "generator")}
    images = {
        "source": models.picture(1),
        "mask": tmp_path / "m.png",
        "reference": models.picture(2),
        "self": models.hole(),
    }
    models.hole().save(tmp_path / "m.png")
    task = SimpleNamespace(id="a", seed=4, images=images, texts=texts)
    pipe = models.painter()
    call = Call(
        {"image": "source", "mask_image": "mask", "reference_image": "reference"}, {"num_inference_steps": 2}
    )
    with capture(pipe, tmp_path / "r.zarr", ["a"]) as cap:
        assert run_job(cap, pipe, lambda id: task, call) == 1
    assert open_run(tmp_path / "r.zarr").record("a")["annotations"] == {**texts, "seed": 4}


def test_what_is_likely_a_mistake_is_warned_of(tmp_path):
    pipe = models.painter()
    ones = Image.fromarray(np.asarray(models.hole()) // 255)
    with capture(pipe, tmp_path / "r.zarr", ["a", "b"]) as cap:
        with pytest.warns(UserWarning, match="ran outside cap.sample"):
            generate(pipe)
        generate(pipe)  # once is enough
        with pytest.warns(UserWarning, match="sample 'a' has no generated image"), cap.sample("a"):
            generate(pipe)
        with (
            pytest.warns(UserWarning, match="sample 'b': mask holds 0 and 1, kept as 0 and 255"),
            cap.sample("b", mask=ones) as s,
        ):
            s.generated = generate(pipe)[0]
    assert set(np.unique(open_run(tmp_path / "r.zarr").image("mask", "b"))) == {0, 255}
