"""``i2am compare`` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from i2am.analysis.compare.compare import compare
from tests.flows.conftest import SAMPLES, Outcome, write_run

I2am = Callable[..., Outcome]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_run(tmp_path / "other.zarr", (*SAMPLES[1:], "z"))


def test_text_and_json_agree(i2am: I2am, run: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = i2am("compare", run, other, "--out", out, "--details", "1")
    assert told.status == 0
    assert "compared 2 pairs; left out: 1 in A alone, 1 in B alone" in told.out
    assert f"report: {out}/report/index.html" in told.out
    assert "maps 4/4: maps" in told.err
    facts = i2am("compare", run, other, "--out", out, "--details", "0", "--quiet", "--json")
    assert (facts.status, facts.err) == (0, "")
    wanted = compare(run, other)
    summary = wanted.tables["summary"].filter(level="unified", direction="r2g", metric="imacs")
    (row,) = [
        each for each in facts.json["summary"] if (each["direction"], each["metric"]) == ("r2g", "imacs")
    ]
    np.testing.assert_allclose(row["difference"], summary["difference"][0])
    assert f"{row['difference']:.3f}" in told.out
    assert json.loads((out / "compare.json").read_text())["samples"] == list(SAMPLES[1:])


def test_patterns_selections_and_clusters(i2am: I2am, run: Path, other: Path, tmp_path: Path) -> None:
    words = (
        "--layer",
        "fine",
        "--steps",
        "1:",
        "--heads",
        "0",
        "--size",
        "8",
        "--time-groups",
        "2",
        "--quiet",
    )
    shards = [write_run(tmp_path / f"shard-{name}.zarr", (name,)) for name in "bz"]
    assert len(shards) == 2
    done = i2am(
        "compare",
        run,
        tmp_path / "shard-*.zarr",
        "--out",
        tmp_path / "out",
        *words,
        "--json",
        "--workers",
        "1",
    )
    assert done.status == 0
    assert done.json["samples"] == ["b"]
    assert done.json["b"] == [str(path) for path in shards]
    assert any("at least two pairs" in line for line in done.json["absent"])
    assert done.json["summary"][0]["low"] is None


def test_damage_is_logged_and_sets_the_exit_status(
    i2am: I2am, run: Path, other: Path, tmp_path: Path
) -> None:
    record = run / "commits" / "b.json"
    record.write_text(record.read_text().replace('"sample"', '"simple"'))
    done = i2am("compare", run, other, "--out", tmp_path / "out", "--quiet")
    assert done.status == 1
    assert "i2am: refused: sample 'b' is damaged" in done.err
    assert "compared 1 pair" in done.out


def test_what_cannot_be_compared(i2am: I2am, run: Path, tmp_path: Path) -> None:
    out = "--out", tmp_path / "out"
    foreign = write_run(tmp_path / "foreign.zarr", ("x", "y"))
    i2am("compare", run, foreign, *out).refused("samples of the same id in both")
    i2am("compare", run, tmp_path / "nothing.zarr", *out).refused("no run at")
    i2am("compare", run, run, *out, "--layer", "none").refused("unknown layer 'none'")
    i2am("compare", run, run, "--out", run / "inside").refused("inside the run")
    i2am("compare", run, run, *out, "--confidence", "2").refused("confidence")
    i2am("compare", run).refused("Missing")
    assert not (tmp_path / "out").exists()
