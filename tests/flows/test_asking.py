"""Questions and answers of the command line: regions, pixels, resize; results that are verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.flows.conftest import Outcome, write_run

I2am = Callable[..., Outcome]


def saved(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["maps"]


def test_a_region_or_a_pixel_needs_no_level(i2am: I2am, run: Path, tmp_path: Path) -> None:
    outcome = i2am("maps", run, "--direction", "g2r", "--at", "5,2", "--out", tmp_path / "a.npz")
    assert outcome.status == 0, outcome.err
    assert "g2r specific maps" in outcome.out
    words = ["--direction", "g2r", "--level", "specific", "--at", "5,2"]
    assert i2am("maps", run, *words, "--out", tmp_path / "b.npz").status == 0
    np.testing.assert_array_equal(saved(tmp_path / "a.npz"), saved(tmp_path / "b.npz"))
    out = ["--out", tmp_path / "c.npz"]
    i2am("maps", run, "--level", "head", "--at", "5,2", *out).refused("at level 'head'")
    outcome = i2am("maps", run, "--direction", "g2r", "--at-pixel", "3,3;0,9", "--out", tmp_path / "d.png")
    assert outcome.status == 0, outcome.err
    i2am("maps", run, "--at-pixel", "3", *out).refused("--at-pixel; expected x,y such as")
    i2am("maps", run, "--at-pixel", "999,0", *out).refused("pixel 999,0; expected x from 0")
    rows = i2am("imacs", run, "--direction", "g2r", "--at", "5,2", "--json").json["scores"]
    assert {(row["level"], row["region"]) for row in rows} == {("specific", "5,2")}


def test_maps_are_made_with_the_resize_that_is_asked_for(i2am: I2am, run: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("linear", "bicubic"):
        words = ["--resize", name, "--size", "31", "--out", tmp_path / f"{name}.npz"]
        assert i2am("maps", run, *words).status == 0
        found[name] = saved(tmp_path / f"{name}.npz")
    assert i2am("maps", run, "--size", "31", "--out", tmp_path / "plain.npz").status == 0
    np.testing.assert_array_equal(saved(tmp_path / "plain.npz"), found["linear"])
    assert np.abs(found["linear"] - found["bicubic"]).max() > 1e-3
    for words in (["maps", run], ["analyze", run], ["compare", run, run], ["imacs", run]):
        out = [] if words[0] == "imacs" else ["--out", tmp_path / "no.npz"]
        i2am(*words, "--resize", "area", *out).refused(
            "unknown resize 'area'; expected one of 'linear', 'bicubic'"
        )


def test_a_damaged_output_is_named_and_made_anew(i2am: I2am, tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "one.zarr", samples=("a",)), tmp_path / "out"
    outcome = i2am("analyze", run, "--out", out, "--quiet", "--direct")
    assert "analysed 1 sample\n" in outcome.out
    assert "ok; 1 sample, " in i2am("verify", out, "--quiet").out
    table = out / "tables" / "unified.parquet"
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    outcome = i2am("verify", out, "--quiet")
    assert outcome.status == 1
    assert "damaged: output tables/unified.parquet: is not what was written" in outcome.out
    assert "1 problem;" in outcome.out
    report = i2am("verify", out, "--quiet", "--json").json
    assert [problem["path"] for problem in report["problems"]] == ["tables/unified.parquet"]
    assert "analysed 1 sample\n" in i2am("analyze", run, "--out", out, "--quiet", "--direct").out
    assert i2am("verify", out, "--quiet").status == 0
    assert "up to date: 1 sample, " in i2am("analyze", run, "--out", out, "--quiet", "--direct").out


@pytest.mark.parametrize("command", ["analyze", "maps"])
def test_what_is_in_the_way_names_the_option(i2am: I2am, run: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "out.npz").mkdir()
    (tmp_path / "out.npz" / "tables").mkdir()
    i2am(command, run, "--out", tmp_path / "out.npz").refused("--overwrite")
