"""The store as others see it: zarr-python, xarray, Dask; and what importing it loads."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import i2am
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.tile import Tile
from i2am.storage.reading.dask_arrays import BLOCK_BYTES, block_shape
from tests.storage.synthetic import LAYERS, check_values, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("interop") / "r.zarr")


def test_dimensions_have_names(run):
    group = zarr.open_group(run.path, mode="r")
    with pytest.warns(
        zarr.errors.ZarrUserWarning, match="Object at commits"
    ):  # a folder of records, not a group
        members = group.members(max_depth=None)
    names = {path: array.metadata.dimension_names for path, array in members if isinstance(array, zarr.Array)}
    assert names == {
        "attention/down.0.attn2/query": ("sample", "step", "head", "gen", "dim"),
        "attention/down.0.attn2/key": ("sample", "once", "head", "ref", "dim"),
        "attention/mid.attn2/query": ("sample", "step", "head", "gen", "dim"),
        "attention/mid.attn2/key": ("sample", "step", "head", "ref", "dim"),
        "attention/mid.attn2/lse": ("sample", "step", "head", "gen"),
        "attention/up.0.attn2/scores": ("sample", "step", "head", "gen", "ref"),
        "images/generated": ("sample", "generated_y", "generated_x", "generated_channel"),
        "images/mask": ("sample", "mask_y", "mask_x", "mask_channel"),
    }


def test_xarray_opens_a_layer_without_a_warning(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (
            xr.open_zarr(f"{run.path}/attention/{LAYERS[0].name}"),
            xr.open_zarr(run.path, group=f"attention/{LAYERS[0].name}", consolidated=False),
        ):
            assert dict(data.sizes) == {
                "sample": 3,
                "step": 5,
                "once": 1,
                "head": 4,
                "gen": 24,
                "dim": 8,
                "ref": 13,
            }
            assert data.attrs["gen_grid"] == [4, 6]
            assert np.array_equal(data["query"][1].values, run.read(LAYERS[0].name, "b").query)


def test_all_images_are_one_dataset_and_the_run_one_tree(tmp_path):
    """Images of three sizes; layers with a tile, an lse and a key kept once; float32: netCDF has no half."""
    shapes = {"mask": (24, 18, 1), "generated": (24, 18, 3), "reference": (20, 30, 3), "depth": (24, 18, 1)}
    tile = Tile(0, 0, 4, 4, 8, 4)
    layers = [
        LayerSpec("n.a", 2, 4, (6, 4), (3, 2), lse=True, dtype="float32"),
        LayerSpec("n.b", 3, 4, (4, 4), (2, 2), static_key=False, dtype="float32", tile=tile),
    ]
    rng = np.random.default_rng(0)
    with i2am.create_run(tmp_path / "r.zarr", layers, [2, 1, 0], ["a", "b"], image_shapes=shapes) as writer:
        for sample in ("a", "b"):
            with writer.sample(sample) as sink:
                for name, shape in shapes.items():
                    sink.put_image(name, rng.integers(0, 256, shape, dtype=np.uint8))
                for spec in layers:
                    key = rng.normal(size=(spec.heads, spec.ref, 4)).astype(np.float32)
                    for step in range(3):
                        query = rng.normal(size=(spec.heads, spec.gen, 4)).astype(np.float32)
                        lse = np.ones((spec.heads, spec.gen), np.float32) * 9 if spec.lse else None
                        sink.put(spec.name, step, query=query, key=key, lse=lse)
    run = i2am.open_run(tmp_path / "r.zarr")
    images = xr.open_zarr(run.path, group="images", consolidated=False)
    for name in shapes:
        assert np.array_equal(images[name][1].values, run.image(name, "b"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Object at ")  # folders of records, which are no part of the tree
        tree = xr.open_datatree(run.path, engine="zarr", consolidated=False)
    held = {node.path for node in tree.subtree if node.data_vars}
    assert held == {"/images", "/attention/n.a", "/attention/n.b"}
    for node in tree.subtree:
        if node.data_vars:
            data = node.to_dataset(inherit=False).load().drop_encoding()
            data.to_netcdf(tmp_path / "copy.nc")
            data.to_zarr(tmp_path / "copy.zarr", mode="w", zarr_format=3, consolidated=False)
            with xr.open_dataset(tmp_path / "copy.nc") as back:
                xr.testing.assert_identical(back.load(), data)
            xr.testing.assert_identical(xr.open_zarr(tmp_path / "copy.zarr", consolidated=False).load(), data)
            xr.testing.assert_identical(pickle.loads(pickle.dumps(data)), data)


def test_a_whole_run_becomes_netcdf_as_the_format_s_page_says(tmp_path, monkeypatch):
    own = write_run(tmp_path / "NAME.zarr")
    page = (Path(__file__).parents[2] / "storage" / "FORMAT.md").read_text()
    (code,) = (block for block in page.split("```")[1::2] if ".to_netcdf(" in block)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Object at ")
        exec(code.removeprefix("python"), {"xarray": xr, "json": json})
    with xr.open_datatree(tmp_path / "NAME.nc") as tree:
        assert json.loads(tree.attrs["i2am"]) == own.attrs
        for name in own.images:
            assert np.array_equal(tree["images"][name][1].values, own.image(name, "b"))
        for name, spec in own.layers.items():
            found = tree[f"attention/{name}"]
            assert {"query", "key"} <= set(found.data_vars) or "scores" in found
            assert list(np.atleast_1d(found.attrs["gen_grid"])) == list(spec.gen_grid)
        block = own.read(LAYERS[0].name, "b")
        assert np.array_equal(tree["attention"][LAYERS[0].name]["query"][1].values, block.query)


def test_the_root_says_what_the_run_is(run):
    own = json.loads((zarr.open_group(run.path, mode="r").store.root / "zarr.json").read_text())[
        "attributes"
    ]["i2am"]
    assert own == run.attrs
    assert own["format"] == 1
    assert own["samples"] == ["a", "b", "c"]
    assert [layer["name"] for layer in own["layers"]] == [spec.name for spec in LAYERS]


def test_building_a_graph_reads_nothing(run, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("data was read")

    monkeypatch.setattr("i2am.storage.locations.local.LocalLocation.read_ranges", refuse)
    monkeypatch.setattr("i2am.storage.locations.local.LocalLocation.read", refuse)
    lazy = [run.scores(spec.name)[:, 1:3].mean() for spec in LAYERS]
    assert all(array.dtype == np.float32 for array in lazy)


def test_keys_depend_on_the_content_alone(run):
    again = i2am.open_run(run.path)
    assert again.scores("mid.attn2").name == run.scores("mid.attn2").name
    assert run.scores("mid.attn2").name != run.scores("up.0.attn2").name


def test_lazy_slices_equal_slices_of_the_whole(run):
    lazy, whole = run.scores(LAYERS[0]), run.scores(LAYERS[0].name).compute()
    for index in (
        (slice(1, 3), slice(0, 5, 2), [2, 0], slice(3, 9), slice(None, None, -1)),
        (1,),
        (-1, 2, 3, 4, 5),
        (slice(None), -1),
        (slice(2, None, -1), 0, slice(None), 23),
        (0, slice(3, 3)),
        (slice(None), slice(None), slice(None), slice(None), -1),
    ):
        got = lazy[index].compute()
        assert got.shape == whole[index].shape
        assert np.allclose(got, whole[index], rtol=1e-5, atol=1e-6)
    rows = run.lse("mid.attn2")
    assert np.array_equal(rows[1, -1, :, 2:4].compute(), rows.compute()[1, -1, :, 2:4])


def test_blocks_are_bounded_and_small_ones_are_read_whole():
    big = LayerSpec("l", 8, 40, (128, 128), (96, 96))
    for spec in (big, LayerSpec("m", 24, 128, (64, 64), (64, 64)), LayerSpec("s", 8, 40, (8, 8), (8, 8))):
        shape = block_shape(spec, 50, 10)
        assert 4 * np.prod(shape, dtype=np.int64) <= BLOCK_BYTES
        assert shape[4] == spec.ref
    assert block_shape(LayerSpec("s", 8, 40, (8, 8), (8, 8)), 50, 10) == (1, 50, 8, 64, 64)


def test_cut_blocks_give_the_same_values(run, monkeypatch):
    whole = {spec.name: run.scores(spec.name).compute() for spec in LAYERS}
    for limit in (64, 1000, 20_000):
        monkeypatch.setattr("i2am.storage.reading.dask_arrays.BLOCK_BYTES", limit)
        for spec in LAYERS:
            lazy = run.scores(spec.name)
            assert lazy.npartitions > 3 or limit > 64
            assert np.allclose(lazy.compute(), whole[spec.name], rtol=1e-5, atol=1e-6)


def test_an_empty_run_has_empty_arrays(tmp_path):
    i2am.create_run(tmp_path / "r.zarr", LAYERS, [1, 0], ["a"]).close()
    run = i2am.open_run(tmp_path / "r.zarr")
    assert run.samples == ()
    assert run.declared == ("a",)
    assert run.scores(LAYERS[0].name).compute().shape == (0, 2, 4, 24, 13)
    assert run.lse("mid.attn2").compute().shape == (0, 2, 2, 6)


def test_importing_and_opening_load_nothing_heavy(run):
    code = (
        "import sys, i2am; heavy = {'torch', 'diffusers', 'prefect', 'zarr', 'dask', 'numpy', 'fsspec'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        f"i2am.open_run({run.path!r}).image('mask', 'a');"
        "assert not (heavy - {'numpy'}) & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_values_are_those_that_were_written(run):
    check_values(run)
