"""How a question may be put: by path, by pixel, without a level, of few steps, and with which resize."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import i2am
from i2am.analysis.grids.resize import bicubic, linear
from i2am.analysis.scores.imacs import imacs
from i2am.storage.errors import InputError, NoAnswer, NotFound, UnknownName
from tests.analysis import builders, oracle
from tests.analysis.builders import build, layer
from tests.analysis.test_maps import LAYERS, expected

SHARP = [layer("fine", gen=(12, 9), ref=(8, 6)), layer("coarse", gen=(4, 3), ref=(16, 12))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("ask") / "run.zarr"
    return build(path, SHARP, steps=3, samples=("one", "two"), images=True, data=sharp)[0]


def sharp(spec, sample):
    """Attention that jumps from patch to patch, which bicubic resizing overshoots."""
    rng = np.random.default_rng([len(sample), spec.gen])
    keys = rng.normal(size=(1, spec.heads, spec.ref, spec.head_dim)) * 4
    return (rng.normal(size=(3, spec.heads, spec.gen, spec.head_dim)) * 4).astype(spec.dtype), keys.astype(
        spec.dtype
    )


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
@pytest.mark.parametrize("level", ["unified", "time", "head", "layer", "specific"])
def test_no_density_leaves_the_range_of_its_layer(run, direction, level):
    at = {"at": (0, 0, 2, 2)} if level == "specific" else {}
    for size in (None, (48, 36), (5, 7)):
        parts = [
            i2am.attribution_maps(run, direction, "layer", layers=name, store=False).values
            for name in run.layers
        ]
        own = i2am.attribution_maps(run, direction, level, size=size, store=False, **at)
        assert own.attrs["resize"] == "linear"
        assert own.values.min() >= 0
        if level in ("unified", "layer"):
            assert own.values.max() <= max(part.max() for part in parts)
            assert own.values.min() >= min(part.min() for part in parts)
    rough = i2am.attribution_maps(run, direction, level, size=(48, 36), store=False, resize="bicubic", **at)
    assert rough.attrs["resize"] == "bicubic"
    if level == "layer":
        assert rough.values.min() < 0


def test_bicubic_maps_equal_the_oracle_on_request(tmp_path):
    run, put = build(tmp_path / "run.zarr", LAYERS)
    marginals, grids = [], []
    for name in ("a", "b", "c"):
        spec = run.layers[name]
        marginals.append(oracle.r2g(oracle.logits(*put["one", name], spec.scale), spec.ref_prefix))
        grids.append(spec.gen_grid)
    wanted = oracle.unified(marginals, grids, (8, 6), oracle.resize)
    maps = i2am.attribution_maps(run, "r2g", resize="bicubic")
    np.testing.assert_allclose(maps[0], wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(maps[0] - expected(put, run, "r2g", (8, 6))).max() > 1e-3


def test_the_official_protocol_has_one_resize(run):
    official = {"protocol": "official", "store": False, "layers": ["coarse"]}
    for direction in ("r2g", "g2r"):
        one, other = (
            i2am.attribution_maps(run, direction, resize=resize, **official)
            for resize in ("linear", "bicubic")
        )
        np.testing.assert_array_equal(one, other)
        assert one.attrs["resize"] == "bicubic"


def test_scores_resize_as_the_maps_were_made(run):
    mask = run.image("mask", "one")[..., 0] > 127
    for resize, grow in (("linear", oracle.linear), ("bicubic", oracle.resize)):
        maps = i2am.attribution_maps(run, "r2g", samples="one", store=False, resize=resize)
        wanted = oracle.imacs(maps.values[0].astype(np.float64), mask, 3.0, grow)
        np.testing.assert_allclose(imacs(maps, mask)[0], wanted, rtol=1e-9)
    np.testing.assert_allclose(
        imacs(maps.values[0], mask, "r2g"),
        oracle.imacs(maps.values[0].astype(np.float64), mask, 3.0),
        rtol=1e-9,
    )


def test_maps_of_aggregations_stay_within_their_range(run):
    def chunk(attention):
        return attention.probabilities("g2r").max(-1)

    peak = i2am.Aggregation("peak", chunk, keep=("step", "head", "gen"))
    exact = {name: i2am.aggregate(run, peak, layers=name, store=False).values for name in run.layers}
    for resize, grow in (("linear", linear), ("bicubic", bicubic)):
        found = i2am.aggregate(run, peak, size=(24, 18), store=False, resize=resize)
        for at, name in enumerate(run.layers):
            np.testing.assert_allclose(found[:, at], grow(exact[name][:, 0], (24, 18)), rtol=1e-5, atol=1e-6)
    with pytest.raises(UnknownName, match="unknown resize"):
        i2am.aggregate(run, peak, resize="area")


def test_more_time_groups_than_steps_are_as_many_as_the_steps(run):
    assert list(i2am.attribution_maps(run, "r2g", "time", store=False).time.values) == ["0-0", "1-1", "2-2"]
    few = i2am.attribution_maps(run, "r2g", "time", steps=[2, 0], time_groups=9, store=False)
    assert list(few.time.values) == ["2-2", "0-0"]


def test_a_region_without_a_level_is_the_specific_level(run):
    maps = i2am.attribution_maps(run, "g2r", at=(8, 3), store=False)
    assert (maps.attrs["level"], maps.attrs["at"]) == ("specific", "8,3")
    np.testing.assert_array_equal(maps, i2am.attribution_maps(run, "g2r", "specific", at=(8, 3), store=False))
    with pytest.raises(InputError, match="at level 'head'"):
        i2am.attribution_maps(run, "g2r", "head", at=(8, 3))


@pytest.mark.parametrize(("direction", "grid"), [("g2r", (12, 9)), ("r2g", (8, 6))])
def test_a_pixel_is_the_patch_that_it_lies_in(run, direction, grid):
    """Images have 24 x 18 pixels."""
    for x, y in ((0, 0), (17, 23), (5, 16)):
        maps = i2am.attribution_maps(run, direction, at_pixels=(x, y), layers="fine", store=False)
        assert (maps.attrs["level"], maps.attrs["at"]) == ("specific", f"pixels {x},{y}")
        patch = (int((y + 0.5) * grid[0] / 24), int((x + 0.5) * grid[1] / 18))
        same = i2am.attribution_maps(run, direction, at=patch, layers="fine", store=False)
        np.testing.assert_allclose(maps, same, rtol=1e-6)
    several = i2am.attribution_maps(run, "g2r", at_pixels=[(0, 0), (17, 23)], layers="fine", store=False)
    both = i2am.attribution_maps(run, "g2r", at=[(0, 0), (11, 8)], layers="fine", store=False)
    np.testing.assert_allclose(several, both, rtol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ((18, 0), "pixel 18,0; expected x from 0 to 17 and y from 0 to 23"),
        ((0, -1), "pixel 0,-1; expected x from 0"),
        ((0.5, 1), r"at_pixels; expected \(x, y\), whole numbers"),
        ([], r"at_pixels; expected \(x, y\)"),
        ((1, 2, 3), r"at_pixels; expected \(x, y\)"),
    ],
)
def test_pixels_that_are_none_are_refused_in_one_line(run, pixels, words):
    with pytest.raises(InputError, match=words):
        i2am.attribution_maps(run, "g2r", at_pixels=pixels)


def test_runs_of_different_images_have_no_common_pixel(run, tmp_path, monkeypatch):
    other = build(tmp_path / "bare.zarr", SHARP, samples=("three",), data=sharp)[0]
    maps = i2am.attribution_maps([run, other], "g2r", at_pixels=(3, 3), store=False)
    assert list(maps["sample"].values) == ["one", "two", "three"]
    plain = builders.pictures
    monkeypatch.setattr(builders, "pictures", lambda rng: plain(rng, (48, 36)))
    large = build(tmp_path / "large.zarr", SHARP, samples=("four",), data=sharp, images=True)[0]
    with pytest.raises(NoAnswer, match="all of one size; got 24 x 18, 48 x 36; give patches"):
        i2am.attribution_maps([run, large], "g2r", at_pixels=(3, 3), store=False)


def test_every_function_that_takes_a_run_takes_its_path(run, tmp_path):
    path = run.path
    np.testing.assert_array_equal(
        i2am.attribution_maps(path, "r2g", store=False), i2am.attribution_maps(run, "r2g", store=False)
    )
    np.testing.assert_array_equal(
        i2am.aggregate(Path(path), "entropy", store=False), i2am.aggregate(run, "entropy", store=False)
    )
    np.testing.assert_array_equal(i2am.daam_maps(path, [0, 3]), i2am.daam_maps(run, [0, 3]))
    assert i2am.compare(path, Path(path), store=False).pairing.samples == ("one", "two")
    assert i2am.prune(path, tmp_path / "pruned.zarr", samples=["one"]).samples == ("one",)
    assert i2am.export(path, tmp_path / "exported.zarr", samples=["two"]).samples == ("two",)
    assert i2am.verify(path).ok
    for function, more in (
        (i2am.attribution_maps, ["r2g"]),
        (i2am.aggregate, ["entropy"]),
        (i2am.daam_maps, [0]),
    ):
        with pytest.raises(NotFound):
            function(tmp_path / "none.zarr", *more)
        with pytest.raises(
            InputError, match="a run; expected an open run, its path or URL, or several; got 3"
        ):
            function(3, *more)


def test_a_plain_function_is_no_aggregation(run):
    for wrong in (np.mean, None, 3):
        with pytest.raises(
            InputError, match="expected an i2am.Aggregation, or the name of one; got"
        ) as caught:
            i2am.aggregate(run, wrong)
        assert "\n" not in str(caught.value)
