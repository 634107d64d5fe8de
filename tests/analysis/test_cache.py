from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr

import i2am.analysis.marginals.store
import i2am.analysis.reduction.reduce
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.marginals.compute_missing import compute_missing_marginals
from i2am.analysis.marginals.memory_cache import ENTRY_BYTES, MemoryCache, shared_cache
from i2am.analysis.marginals.quantities import compute_marginals
from i2am.analysis.marginals.store import open_marginals
from i2am.storage.errors import AlreadyExists, DamagedSample
from i2am.storage.reading.open import open_run
from tests.analysis.builders import build, damage, layer

LAYERS = [layer("a", ref_prefix=1), layer("b", gen=(8, 6))]


@pytest.fixture
def run(tmp_path):
    return build(tmp_path / "run.zarr", LAYERS, samples=("one", "two"), images=True)[0]


@pytest.fixture
def computed(monkeypatch):
    """The (layer, sample) pairs that were computed, rather than found."""
    done = []

    def spy(run, spec, sample):
        done.append((spec.name, sample))
        return compute_marginals(run, spec, sample)

    monkeypatch.setattr(i2am.analysis.marginals.store, "compute_marginals", spy)
    return done


def test_every_entry_is_computed_once_and_serves_both_directions(run, computed):
    first = attribution_maps(run, "r2g").values
    assert sorted(computed) == [(name, sample) for name in "ab" for sample in ("one", "two")]
    attribution_maps(run, "g2r", "time", time_groups=2).compute()
    attribution_maps(run, "g2r", "specific", at="mask").compute()
    np.testing.assert_array_equal(attribution_maps(run, "r2g").values, first)
    assert len(computed) == 4


def test_only_what_is_asked_for_is_filled(run, computed):
    attribution_maps(run, "r2g", layers="b", samples="two").compute()
    assert computed == [("b", "two")]


def test_any_reader_opens_it(run, tmp_path):
    attribution_maps(run, "r2g").compute()
    opened = xr.open_zarr(tmp_path / "run.marginals.zarr", group="a", consolidated=False)
    assert opened["r2g"].dims == ("sample", "step", "head", "gen")
    assert opened["g2r"].shape == (2, 3, 2, 6)
    np.testing.assert_allclose(opened["r2g"].mean("gen"), 1, rtol=1e-5)
    assert (
        zarr.open_group(tmp_path / "run.marginals.zarr", mode="r").attrs["i2am_marginals"]["run_id"]
        == run.run_id
    )


def chunk_files(tmp_path):
    return sorted(path for path in (tmp_path / "run.marginals.zarr").rglob("c/*/**/*") if path.is_file())


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete", "empty"])
def test_a_damaged_entry_is_computed_again(run, tmp_path, computed, harm):
    whole = attribution_maps(run, "r2g").values
    files = chunk_files(tmp_path)
    assert len(files) == 2 * 2 * 6  # five quantities and the seal
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes({"flip": data, "truncate": data[:-3], "empty": b"", "delete": b""}[harm])
        if harm == "delete":
            path.unlink()
        shared_cache.clear()  # as another process would
        np.testing.assert_array_equal(attribution_maps(run, "r2g").values, whole)
    assert len(computed) > 4


def test_another_kernel_or_run_is_not_reused(run, tmp_path, computed, monkeypatch):
    attribution_maps(run, "r2g", layers="a").compute()
    monkeypatch.setattr(i2am.analysis.marginals.store, "KERNEL_VERSION", -1)
    attribution_maps(run, "r2g", layers="a").compute()
    assert len(computed) == 4
    shutil.rmtree(tmp_path / "run.zarr")
    other, _ = build(tmp_path / "run.zarr", LAYERS, samples=("one", "two"), seed=5, steps=4)
    maps = attribution_maps(other, "r2g", layers="a").values
    np.testing.assert_array_equal(maps, attribution_maps(other, "r2g", layers="a", store=False).values)


def test_a_place_that_holds_something_else_is_refused(run, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(AlreadyExists, match="holds something else"):
        attribution_maps(run, "r2g", store=str(tmp_path / "other")).compute()
    assert os.listdir(tmp_path / "other") == ["notes.txt"]


def test_in_memory_places_work(run):
    cache = open_marginals(run, "memory://marginals.zarr")
    first = cache.load_or_compute(run.layers["a"], "one")
    again = cache.load_or_compute(run.layers["a"], "one")
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])


def test_a_damaged_sample_refuses_and_the_others_answer(run, tmp_path):
    intact = attribution_maps(run, "r2g", samples="two", store=False).values
    damage(tmp_path / "run.zarr")
    with pytest.raises(DamagedSample, match="sample 'one', layer"):
        attribution_maps(run, "r2g").compute()
    np.testing.assert_array_equal(attribution_maps(run, "r2g", samples="two").values, intact)


def test_what_was_read_lately_is_not_read_again(run, tmp_path, computed):
    whole = attribution_maps(run, "r2g").values
    shutil.rmtree(tmp_path / "run.marginals.zarr")
    np.testing.assert_array_equal(attribution_maps(run, "r2g").values, whole)
    np.testing.assert_allclose(attribution_maps(run, "r2g", "head").mean("head"), whole, rtol=1e-6)
    assert len(computed) == 4
    assert not (tmp_path / "run.marginals.zarr").exists()
    # A place of one's own is filled all the same, and another capture is another entry.
    attribution_maps(run, "r2g", store=str(tmp_path / "mine.zarr")).compute()
    assert (tmp_path / "mine.zarr").is_dir()


def test_memory_is_bounded_and_the_oldest_goes_first():
    cache = MemoryCache(max_bytes=5 * (800 + ENTRY_BYTES))
    made = []

    def make(number):
        made.append(number)
        return np.full(100, number)  # 800 bytes

    for number in (1, 2, 3, 4, 5, 1, 6, 1, 2):
        assert cache.get(number, lambda number=number: make(number))[0] == number
    assert made == [1, 2, 3, 4, 5, 6, 2]
    assert cache.get("large", lambda: np.zeros(2000)).size == 2000
    assert "large" not in cache
    with pytest.raises(ValueError, match="read-only"):
        cache.get(1, lambda: make(1))[0] = 7


def test_groups_of_samples_are_one_task_where_all_is_stored(run):
    separate = attribution_maps(run, "r2g", "time", time_groups=3)
    values = separate.values
    together = attribution_maps(run, "r2g", "time", time_groups=3)
    assert len(separate.data.dask) > len(together.data.dask) == 1
    np.testing.assert_array_equal(together.values, values)
    assert together.encoding["chunks"] == (1, *values.shape[1:])


@pytest.mark.parametrize("slab_bytes", [1, 2**28])
def test_slabs_of_steps_fill_the_same_bytes(run, tmp_path, monkeypatch, slab_bytes):
    monkeypatch.setattr(i2am.analysis.reduction.reduce, "SLAB_BYTES", slab_bytes)
    store = str(tmp_path / "slabs.zarr")
    events = []
    assert compute_missing_marginals(run, run.samples, store=store, emit=events.append) == {}
    assert events[-1].done == events[-1].total == 4
    plain = open_marginals(run, str(tmp_path / "plain.zarr"))
    for spec in run.layers.values():
        for sample in run.samples:
            plain.load_or_compute(spec, sample)
    filled, exact = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("slabs.zarr", "plain.zarr")
    )
    assert filled == exact
    assert compute_missing_marginals(run, run.samples, store=store, emit=events.append) == {}


def test_a_damaged_sample_is_named_whatever_the_slabs(run, tmp_path, monkeypatch):
    monkeypatch.setattr(i2am.analysis.reduction.reduce, "SLAB_BYTES", 1)
    damage(tmp_path / "run.zarr")
    found = compute_missing_marginals(run, run.samples)
    assert list(found) == ["one"]
    assert "sample 'one', layer" in found["one"]


def test_a_damaged_record_is_said_by_the_values_not_by_the_question(run, tmp_path):
    record = tmp_path / "run.zarr" / "commits" / "one.json"
    record.write_bytes(record.read_bytes()[:-9])
    maps = attribution_maps(open_run(run.path), "r2g")
    assert np.isfinite(maps.sel(sample="two")).all()
    with pytest.raises(DamagedSample, match="sample 'one'"):
        maps.compute()


def test_zarr_writes_the_metadata_and_any_version_of_it_is_accepted(run, tmp_path):
    store = open_marginals(run, str(tmp_path / "marginals.zarr"))
    spec = run.layers["a"]
    store.load_or_compute(spec, "one")
    path = tmp_path / "marginals.zarr" / "a" / "g2r" / "zarr.json"
    document = json.loads(path.read_bytes())
    assert document["dimension_names"] == ["sample", "step", "head", "ref"]
    del document["storage_transformers"]  # older versions of zarr write no empty members
    path.write_text(json.dumps(document))
    written = path.read_bytes()
    assert store.wrong_documents(spec) == []
    store.load_or_compute(spec, "two")
    assert path.read_bytes() == written
    path.write_text(json.dumps(document | {"shape": [9, 9, 9, 9]}))
    assert store.wrong_documents(spec) == ["a/g2r/zarr.json"]
    store.save(spec, "two", store.load(spec, "two"))
    assert store.wrong_documents(spec) == []
