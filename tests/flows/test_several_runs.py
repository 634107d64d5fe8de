"""Commands over several runs: a list, a pattern, labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from i2am.analysis.maps.attribution import attribution_maps
from i2am.storage.reading.open import open_run
from tests.flows.conftest import SAMPLES, Outcome, write_run

I2am = Callable[..., Outcome]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two runs of different samples, and a third that shares its ids with the first."""
    (tmp_path / "more").mkdir()
    write_run(tmp_path / "s-0.zarr", SAMPLES[:2])
    write_run(tmp_path / "s-1.zarr", ("d",))
    write_run(tmp_path / "more" / "s-0.zarr", SAMPLES[:2])
    return tmp_path


def test_maps_and_scores_of_a_pattern(i2am: I2am, shards: Path) -> None:
    out = shards / "F.zarr"
    done = i2am("maps", shards / "s-*.zarr", "--level", "head", "--out", out)
    assert (done.status, done.err) == (0, "")
    (maps,) = xr.open_zarr(out, consolidated=False).data_vars.values()
    assert list(maps["sample"].values) == ["a", "b", "d"]
    own = attribution_maps(open_run(shards / "s-1.zarr"), "r2g", "head")
    np.testing.assert_array_equal(maps.sel(sample="d"), own[0])
    assert i2am("maps", shards / "s-*.zarr", "--out", shards / "F.png").status == 0
    rows = i2am("imacs", shards / "s-*.zarr", "--direction", "r2g", "--json").json["scores"]
    alone = i2am("imacs", shards / "s-1.zarr", "--direction", "r2g", "--json").json["scores"]
    assert [row["sample"] for row in rows] == ["a", "b", "d"]
    assert rows[2] == alone[0]


def test_inspect_names_the_runs(i2am: I2am, shards: Path) -> None:
    words = ("inspect", shards / "s-0.zarr", shards / "s-1.zarr")
    told = i2am(*words)
    assert f"{shards / 's-1.zarr'}: 1 sample\n" in told.out
    assert "3 of 3 samples committed" in told.out
    facts = i2am(*words, "--json").json
    assert [entry["samples"] for entry in facts["runs"]] == [2, 1]
    assert facts["bytes"] == sum(i2am("inspect", path, "--json").json["bytes"] for path in words[1:])
    assert i2am("inspect", words[1], "--json").json["runs"] == []


def test_a_study_of_a_pattern_and_of_labelled_runs(i2am: I2am, shards: Path) -> None:
    done = i2am("analyze", shards / "s-*.zarr", "--out", shards / "out", "--quiet", "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json["samples"] == ["a", "b", "d"]
    both = shards / "s-0.zarr", shards / "more" / "s-0.zarr"
    i2am("analyze", *both, "--out", shards / "two", "--quiet").refused("sample 'a' is in two runs.*--label")
    assert not (shards / "two").exists()
    done = i2am("analyze", *both, "--label", "--out", shards / "two", "--quiet", "--json")
    folder = shards.name
    assert done.json["samples"] == [f"{folder}/s-0/a", f"{folder}/s-0/b", "more/s-0/a", "more/s-0/b"]


@pytest.mark.parametrize("command", ["inspect", "imacs", "maps", "analyze"])
def test_patterns_that_fit_nothing(i2am: I2am, tmp_path: Path, command: str) -> None:
    out = [] if command in ("inspect", "imacs") else ["--out", tmp_path / "out.npz"]
    i2am(command, tmp_path / "*.zarr", *out).refused("no run fits")
