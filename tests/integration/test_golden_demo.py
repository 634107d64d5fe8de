"""The numbers of a demo run, as they were before the packages were rearranged: maps, IMACS and tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xarray as xr
from polars.testing import assert_frame_equal

from tests.integration.golden_demo.make import build, machine, maps_of, tables_of

GOLDEN = Path(__file__).parent / "golden_demo"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "maps.npz"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    return build(GOLDEN / "inputs.npz", tmp_path_factory.mktemp("golden") / "demo.zarr")


@pytest.fixture(scope="module")
def same_arithmetic(golden: dict[str, np.ndarray]) -> bool:
    """Whether this machine sums and multiplies as the one that made the figures: then bits must be equal."""
    return str(golden["machine"]) == machine()


def compare(found: np.ndarray, wanted: np.ndarray, exactly: bool) -> None:
    if exactly:
        np.testing.assert_array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.nanmax(np.abs(wanted)))


def test_maps_and_imacs_are_reproduced(run, golden, same_arithmetic) -> None:
    found = maps_of(run)
    assert found.keys() == {name for name in golden if name.startswith(("corrected", "official"))}
    for name, values in found.items():
        compare(values, golden[name], same_arithmetic)


def test_the_tables_and_maps_of_a_study_are_reproduced(run, golden, same_arithmetic, tmp_path) -> None:
    tables_of(run, tmp_path / "out")
    for direction in ("r2g", "g2r"):
        stored = xr.open_zarr(tmp_path / "out" / "maps.zarr", group=direction, consolidated=False)
        assert {f"study|{direction}|{name}" for name in stored.data_vars} == {
            name for name in golden if name.startswith(f"study|{direction}|")
        }
        for name, values in stored.data_vars.items():
            compare(values.values, golden[f"study|{direction}|{name}"], same_arithmetic)
    tables = sorted(path.name for path in (GOLDEN / "tables").iterdir())
    assert sorted(path.name for path in (tmp_path / "out" / "tables").iterdir()) == tables
    for name in tables:
        wanted = pl.read_parquet(GOLDEN / "tables" / name).drop("run_id", strict=False)
        found = pl.read_parquet(tmp_path / "out" / "tables" / name).drop("run_id", strict=False)
        assert_frame_equal(found, wanted, check_exact=same_arithmetic, rel_tol=1e-5, abs_tol=1e-6)
