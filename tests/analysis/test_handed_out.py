"""Whatever the analysis hands out goes through netCDF, Zarr and pickle and comes back identical."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr

import i2am
from tests.analysis.builders import build, layer

LAYERS = [layer("a", gen=(6, 4), ref=(4, 3), lse=True), layer("b.attn", gen=(4, 3), ref=(4, 3), ref_prefix=1)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("handed") / "run.zarr"
    return build(path, LAYERS, samples=("one", "two"), images=True)[0]


def several(run, tmp_path):
    return i2am.open_runs([run, build(tmp_path / "other.zarr", LAYERS, samples=("x",), images=True)[0]])


def maps(way, level=None, **more):
    return lambda run, tmp_path: i2am.attribution_maps(run, way, level, store=False, **more)


RESULTS = {
    "unified": maps("r2g"),
    "one layer": maps("r2g", layers="a"),
    "time": maps("g2r", "time"),
    "head": maps("r2g", "head"),
    "layer": maps("g2r", "layer"),
    "patches": maps("g2r", at=[(1, 2), (3, 3)]),
    "box": maps("g2r", at=(1, 1, 3, 3)),
    "mask": maps("g2r", at=np.eye(6, 4, dtype=bool)),
    "pixels": maps("g2r", at_pixels=[(1, 2), (3, 4)]),
    "official": maps("r2g", protocol="official"),
    "joint": maps("r2g", method="joint", layers="a"),
    "several runs": lambda run, path: i2am.attribution_maps(several(run, path), "r2g", "time", store=False),
    "imacs": lambda run, path: i2am.imacs(
        i2am.attribution_maps(run, "r2g", store=False), [run.image("mask", s)[..., 0] for s in run.samples]
    ),
    "daam": lambda run, path: i2am.daam_maps(run, [0, 2]),
    "aggregation": lambda run, path: i2am.aggregate(run, "head_similarity", store=False),
    "map aggregation": lambda run, path: i2am.aggregate(run, "time_variance", store=False),
}


@pytest.mark.parametrize("name", RESULTS)
def test_arrays_come_back_identical(run, tmp_path, name):
    result = RESULTS[name](run, tmp_path).rename("values")
    wanted = result.compute().drop_encoding()
    result.to_netcdf(tmp_path / "r.nc")
    with xr.open_dataarray(tmp_path / "r.nc") as back:
        xr.testing.assert_identical(back.load(), wanted)
    result.to_dataset().to_zarr(tmp_path / "r.zarr", zarr_format=3, consolidated=False)
    xr.testing.assert_identical(
        xr.open_zarr(tmp_path / "r.zarr", consolidated=False)["values"].load(), wanted
    )
    xr.testing.assert_identical(pickle.loads(pickle.dumps(result)).compute(), wanted)
    assert bytes(result.to_netcdf())[:4] in (b"\x89HDF", b"CDF\x01", b"CDF\x02")


def test_comparisons_come_back_identical(run, tmp_path):
    for (way, level), data in i2am.compare(run, run, store=False).maps.items():
        data.to_netcdf(tmp_path / f"{way}-{level}.nc")
        with xr.open_dataset(tmp_path / f"{way}-{level}.nc") as back:
            xr.testing.assert_identical(back.load(), data)
        xr.testing.assert_identical(pickle.loads(pickle.dumps(data)), data)
