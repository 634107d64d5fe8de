"""Several runs analysed as one: shards equal the run that they are parts of, buckets their own maps."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import dask
import numpy as np
import polars as pl
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import i2am.analysis.marginals.store
from i2am.analysis.aggregations.aggregate import aggregate
from i2am.analysis.aggregations.daam import daam_maps
from i2am.analysis.grids.regions import image_mask
from i2am.analysis.grids.resize import linear
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.marginals.memory_cache import shared_cache
from i2am.analysis.marginals.quantities import compute_marginals
from i2am.analysis.options import StudyOptions
from i2am.analysis.scores.imacs import imacs
from i2am.analysis.study.study import analyze
from i2am.storage.errors import EmptyRun, InputError, NoAnswer, ShapeMismatch, UnknownName
from i2am.storage.reading.open import open_run, open_runs
from i2am.storage.tools.prune import prune
from i2am.storage.writing.create import create_run
from tests.analysis.builders import build, damage, factors, layer, pictures

LAYERS = [layer("a", gen=(8, 6), ref=(4, 3)), layer("b", gen=(4, 3), ref=(4, 3), ref_prefix=1, lse=False)]
SAMPLES = ("p", "q", "r", "s", "t")
LEVELS = ("unified", "time", "head", "layer", "specific")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of five samples, and a folder for shards of it."""
    place = tmp_path_factory.mktemp("whole")
    return build(place / "run.zarr", LAYERS, steps=4, samples=SAMPLES, images=True)[0]


def cut(whole, place, parts):
    """Shards of a run, each with the samples of one part."""
    for number, part in enumerate(parts):
        prune(whole, place / f"shard-{number}.zarr", samples=part)
    return open_runs(place / "shard-*.zarr")


@pytest.fixture(scope="module")
def shards(whole, tmp_path_factory):
    return cut(whole, tmp_path_factory.mktemp("shards"), [("r", "p"), ("t",), ("q", "s")])


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("protocol", ["corrected", "official"])
def test_maps_of_shards_equal_those_of_the_run_bit_for_bit(whole, shards, direction, level, protocol):
    image = {"r2g": "reference_mask", "g2r": "mask"}[direction]
    asked = {"at": image} if level == "specific" else {"time_groups": 3}
    try:
        one = attribution_maps(whole, direction, level, samples=SAMPLES, protocol=protocol, **asked)
    except NoAnswer:
        with pytest.raises(NoAnswer):
            attribution_maps(shards, direction, level, samples=SAMPLES, protocol=protocol, **asked)
        return
    many = attribution_maps(shards, direction, level, samples=SAMPLES, protocol=protocol, **asked)
    np.testing.assert_array_equal(many.values, one.values)
    assert (many.dims, list(many["sample"].values), many.name) == (one.dims, list(SAMPLES), one.name)
    assert {k: v for k, v in many.attrs.items() if k != "run_id"} == {
        k: v for k, v in one.attrs.items() if k != "run_id"
    }
    assert many["run_id"].sel(sample="t") == shards.members[1].run_id
    for name in one.coords:
        np.testing.assert_array_equal(many[name], one[name])


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(SAMPLES),
    cuts=st.sets(st.integers(1, 4)),
    ask=st.permutations(SAMPLES),
    k=st.integers(1, 5),
)
def test_how_samples_are_split_and_ordered_does_not_matter(whole, tmp_path_factory, order, cuts, ask, k):
    edges = [0, *sorted(cuts), len(order)]
    parts = [order[a:b] for a, b in pairwise(edges)]
    runs = cut(whole, tmp_path_factory.mktemp("cut"), parts)
    asked = list(ask[:k])
    for arguments in ({"direction": "r2g", "level": "head"}, {"direction": "g2r", "level": "unified"}):
        many, one = (attribution_maps(run, samples=asked, **arguments) for run in (runs, whole))
        np.testing.assert_array_equal(many.values, one.values)
        assert list(many["sample"].values) == asked
    assert sorted(attribution_maps(runs, "g2r")["sample"].values) == sorted(SAMPLES)


@pytest.mark.parametrize("name", ["entropy", "head_similarity", "attention_centre", "time_variance"])
def test_aggregations_of_shards_equal_those_of_the_run(whole, shards, name):
    many, one = (aggregate(run, name, samples=SAMPLES) for run in (shards, whole))
    np.testing.assert_array_equal(many.values, one.values)
    assert many.dims == one.dims
    tokens = [daam_maps(run, [0, 2], samples=SAMPLES).values for run in (shards, whole)]
    np.testing.assert_array_equal(*tokens)


def test_marginals_come_from_and_go_to_each_runs_own_store(whole, tmp_path, monkeypatch):
    done = []

    def spy(run, spec, sample):
        done.append((run.name, spec.name, sample))
        return compute_marginals(run, spec, sample)

    monkeypatch.setattr(i2am.analysis.marginals.store, "compute_marginals", spy)
    runs = cut(whole, tmp_path, [("p", "q"), ("r",)])
    attribution_maps(runs.members[0], "r2g").compute()
    assert len(done) == 4
    attribution_maps(runs, "g2r").compute()
    assert [entry for entry in done[4:] if entry[0] != "shard-1.zarr"] == []
    assert len(done) == 6
    shared_cache.clear()
    labelled = open_runs(tmp_path / "shard-*.zarr", label=True)
    attribution_maps(labelled, "r2g", "head").compute()
    analyze(labelled, tmp_path / "out", StudyOptions(figures=0, details=0))
    assert len(done) == 6  # a label is no part of what was computed
    for number in range(2):
        assert (tmp_path / f"shard-{number}.marginals.zarr").is_dir()
    attribution_maps(runs, "g2r", store=str(tmp_path / "kept")).compute()
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        f"{member.run_id}.marginals.zarr" for member in runs.members
    }


def test_a_study_of_shards_equals_the_study_of_the_run(whole, shards, tmp_path):
    options = StudyOptions(aggregations=("entropy",), figures=2, samples=SAMPLES)
    one = analyze(whole, tmp_path / "one", options)
    many = analyze([member.path for member in shards.members], tmp_path / "many", options)
    assert many.samples == one.samples == SAMPLES
    ids = {sample: shards.home(sample).run_id for sample in SAMPLES}
    names = sorted(path.name for path in (tmp_path / "one" / "tables").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "many" / "tables").iterdir())
    for name in names:
        first, second = (pl.read_parquet(tmp_path / part / "tables" / name) for part in ("one", "many"))
        if "run_id" in first.columns:
            assert dict(zip(second["sample"], second["run_id"], strict=True)) == ids
            first, second = first.drop("run_id"), second.drop("run_id")
        assert first.equals(second), name
    for direction in ("r2g", "g2r"):
        first, second = (
            xr.open_zarr(result.maps, group=direction, consolidated=False) for result in (one, many)
        )
        for name in first.data_vars:
            np.testing.assert_array_equal(first[name], second[name])
    page = many.report.read_text()
    assert all(member.path in page for member in shards.members)
    facts = json.loads((tmp_path / "many" / "study.json").read_text())
    assert facts["runs"] == [member.path for member in shards.members]


def test_a_damaged_sample_of_one_shard_is_left_out(whole, tmp_path):
    runs = cut(whole, tmp_path, [("p", "q"), ("r",)])
    damage(tmp_path / "shard-0.zarr", 1)
    result = analyze(open_runs(runs.members, label=True), tmp_path / "out", StudyOptions(figures=0))
    assert result.samples == ("shard-0/p", "shard-1/r")
    assert [refusal.sample for refusal in result.refusals] == ["shard-0/q"]


def test_any_scheduler_gives_the_same_and_tasks_carry_one_run(shards):
    maps = attribution_maps(shards, "r2g", "layer", store=False)
    with dask.config.set(scheduler="synchronous"):
        one = maps.compute()
    np.testing.assert_array_equal(maps.compute(scheduler="threads"), one)
    alone = attribution_maps(shards.members[1], "r2g", "layer", store=False)
    per_task = [len(pickle.dumps(dict(x.__dask_graph__()))) / x.sizes["sample"] for x in (maps, alone)]
    assert per_task[0] < 1.3 * per_task[1]


# ------------------------------------------------------------------------------------------ buckets


def bucket(place, name, scale, samples, aspect=(4, 3)):
    gen = (aspect[0] * scale, aspect[1] * scale)
    layers = [layer("a", gen=gen, ref=gen), layer("b", gen=aspect, ref=aspect, ref_prefix=1)]
    seed = sum(map(ord, name))
    return build(place / f"{name}.zarr", layers, steps=3, samples=samples, images=True, seed=seed)[0]


@pytest.fixture(scope="module")
def buckets(tmp_path_factory):
    """Two resolutions of one aspect ratio."""
    place = tmp_path_factory.mktemp("buckets")
    bucket(place, "large", 3, ["l1", "l2"])
    bucket(place, "small", 2, ["s1", "s2", "s3"])
    return open_runs(place / "*.zarr")


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [None, (10, 9)])
def test_buckets_equal_each_buckets_own_maps_at_one_size(buckets, direction, level, size):
    at = {"r2g": "reference_mask", "g2r": "mask"}[direction] if level == "specific" else None
    asked = {"at": at, "time_groups": 2}
    names = ["s2", "l2", "s1", "l1"]
    combined = attribution_maps(buckets, direction, level, samples=names, size=size, **asked)
    own = size or (12, 9)
    assert combined.shape[-2:] == own
    for name in names:
        home = buckets.home(name)
        wanted = attribution_maps(home, direction, level, samples=name, size=own, **asked)
        np.testing.assert_array_equal(combined.sel(sample=name), wanted[0])
        rows = {"large.zarr": 12, "small.zarr": 8}[home.name]
        assert combined.sel(sample=name)["own_rows"] == rows
    with pytest.raises(ShapeMismatch, match=r"12, 9 by 12, 9 in .*large.*8, 6 by 8, 6 in .*small.*one size"):
        buckets.scores("a")


@pytest.fixture
def shapes(tmp_path):
    """Two aspect ratios; the images of the wide run are wide."""
    tall = bucket(tmp_path, "tall", 2, ["t1", "t2"])
    rng = np.random.default_rng(3)
    layers = [layer("a", gen=(6, 8), ref=(6, 8)), layer("b", gen=(3, 4), ref=(3, 4), ref_prefix=1)]
    images = {name: image.transpose(1, 0, 2) for name, image in pictures(rng).items()}
    with (
        create_run(
            tmp_path / "wide.zarr",
            layers,
            [3, 2, 1],
            ["w1"],
            image_shapes={name: image.shape for name, image in images.items()},
        ) as writer,
        writer.sample("w1") as sink,
    ):
        for name, image in images.items():
            sink.put_image(name, image)
        for spec in layers:
            query, key = factors(spec, 3, rng)
            for step in range(3):
                sink.put(spec.name, step, query=query[step], key=key[0])
    return open_runs([tall, open_run(tmp_path / "wide.zarr")])


def test_aspect_ratios_that_differ_need_a_size(shapes):
    with pytest.raises(InputError, match=r"aspect ratio.*a size.*8x6, 6x8.*size="):
        attribution_maps(shapes, "r2g")
    maps = attribution_maps(shapes, "r2g", size=(8, 8))
    assert maps.shape == (3, 8, 8)


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
def test_imacs_is_scored_against_each_samples_own_mask(shapes, direction, tmp_path):
    name = {"r2g": "mask", "g2r": "reference_mask"}[direction]
    masks = [image_mask(shapes.image(name, sample)) for sample in shapes.samples]
    assert len({mask.shape for mask in masks}) == 2
    maps = attribution_maps(shapes, direction, "head", size=(8, 8))
    scores = imacs(maps, masks)
    assert scores.dims == ("sample", "head")
    for sample, mask in zip(shapes.samples, masks, strict=True):
        alone = attribution_maps(shapes.home(sample), direction, "head", samples=sample, size=(8, 8))
        wanted = [imacs(square, mask, direction) for square in linear(alone.values[0], mask.shape)]
        np.testing.assert_allclose(scores.sel(sample=sample), wanted, rtol=1e-12)
    turned = [mask.T for mask in masks]
    with pytest.raises(ShapeMismatch, match="aspect ratio of"):
        imacs(maps, turned)
    with pytest.raises(ShapeMismatch, match="one for each of 3 samples"):
        imacs(maps, masks[1:])
    result = analyze(shapes, tmp_path / "out", StudyOptions(size=(8, 8), figures=1))
    table = result.tables["head"].filter(direction=direction)
    np.testing.assert_allclose(table["imacs"], scores.values.reshape(-1))
    assert table["note"].null_count() == table.height


def test_patches_of_grids_that_differ_are_refused(buckets, shards):
    with pytest.raises(InputError, match="the runs' grids differ.*name a mask"):
        attribution_maps(buckets, "g2r", "specific", at=(0, 0))
    mask = np.zeros((24, 18))
    mask[:12] = 1
    assert attribution_maps(buckets, "g2r", "specific", at=mask).shape == (5, 12, 9)
    assert attribution_maps(shards, "g2r", "specific", at=(0, 0)).shape == (5, 4, 3)


def test_official_maps_on_the_reference_keep_their_grid(buckets, tmp_path):
    with pytest.raises(NoAnswer, match="different grids"):
        attribution_maps(buckets, "g2r", layers="a", protocol="official")
    assert attribution_maps(buckets, "r2g", layers="a", protocol="official").shape == (5, 64, 64)
    result = analyze(
        buckets, tmp_path / "out", StudyOptions(layers=("a",), protocol="official", figures=0, details=0)
    )
    assert any("different grids" in line for line in result.absent)


def test_samples_that_are_not_there(shards, tmp_path):
    with pytest.raises(UnknownName, match="unknown sample 'x'"):
        attribution_maps(shards, "r2g", samples=["p", "x"])
    with pytest.raises(InputError, match="samples is empty"):
        attribution_maps(shards, "r2g", samples=[])
    for name in ("one", "two"):
        create_run(tmp_path / f"{name}.zarr", LAYERS, [1], [name]).close()
    with pytest.raises(EmptyRun, match="0 of 2 declared"):
        attribution_maps(open_runs(tmp_path / "*.zarr"), "r2g")


def test_timesteps_that_differ_are_nan_in_a_study_too(tmp_path, monkeypatch):
    """Whatever run the first block of samples comes from."""
    monkeypatch.setattr("i2am.analysis.maps.write.BLOCK", 2)
    for number, (names, times) in enumerate(((["a", "b", "c"], [900, 100]), (["d"], [800, 100]))):
        spec = layer("x", dtype="float32")
        with create_run(tmp_path / f"s{number}.zarr", [spec], times, names) as writer:
            for name in names:
                with writer.sample(name) as sink:
                    query, key = factors(spec, 2, np.random.default_rng(number))
                    for step in range(2):
                        sink.put("x", step, query=query[step], key=key[0])
    runs = open_runs(tmp_path / "s?.zarr")
    result = analyze(runs, tmp_path / "out", StudyOptions(figures=0, details=0))
    stored = xr.open_zarr(result.maps, group="r2g", consolidated=False)
    np.testing.assert_array_equal(stored["timestep"], [np.nan, 100])
    maps = attribution_maps(runs, "r2g", "time", time_groups=2)
    np.testing.assert_array_equal(stored["by_time"], maps)
    np.testing.assert_array_equal(stored["timestep"], maps["timestep"])
