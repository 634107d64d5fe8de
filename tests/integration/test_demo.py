"""`i2am demo` as a newcomer runs it: embedded model, Prefect's server, two processes, a report.

From an installed wheel, outside the checkout, among modules of the user's that are called like the project's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars
import pytest
import xarray as xr
import zarr

from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from tests.flows.conftest import Outcome, spawn
from tests.integration.installation import Installed, run, write_user_modules

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def demo(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("demo")
    write_user_modules(folder)
    out = folder / "D"
    done = run(installed.bin / "i2am", "demo", "--out", out, "--samples", 3, "--steps", 4, cwd=folder)
    return Outcome(done.returncode, done.stdout, done.stderr), out


def test_it_ends_with_the_path_of_the_report(demo: tuple[Outcome, Path]) -> None:
    outcome, out = demo
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[-1] == f"report: {out / 'report' / 'index.html'}"
    assert "Traceback" not in outcome.err
    assert {path.name for path in out.iterdir()} == {
        "capture.yaml", "run.zarr", "run.marginals.zarr", "maps.zarr", "tables", "figures", "report",
        "study.json",
    }  # fmt: skip


def test_the_run_is_whole(demo: tuple[Outcome, Path]) -> None:
    run = open_run(demo[1] / "run.zarr")
    assert len(run.samples) == 3
    assert len(run.timesteps) == 4
    assert verify(demo[1] / "run.zarr").ok
    group = zarr.open_group(demo[1] / "run.zarr", mode="r")
    for layer in run.layers:
        assert group[f"attention/{layer}/query"].metadata.dimension_names == (
            "sample",
            "step",
            "head",
            "gen",
            "dim",
        )
        opened = xr.open_zarr(demo[1] / "run.zarr", group=f"attention/{layer}", consolidated=False)
        assert opened["query"].dims == ("sample", "step", "head", "gen", "dim")


def test_the_results_are_there(demo: tuple[Outcome, Path]) -> None:
    maps = xr.open_zarr(demo[1] / "maps.zarr", group="r2g", consolidated=False)
    assert np.isfinite(maps["unified"].values).all()
    table = polars.read_parquet(demo[1] / "tables" / "unified.parquet")
    assert table.filter(direction="g2r", region="all")["imacs"].null_count() == 0
    report = (demo[1] / "report" / "index.html").read_text()
    for sample in open_run(demo[1] / "run.zarr").samples:
        assert sample in report
    assert "http://" not in report.replace("http://www.w3.org", "")


def test_again_is_refused_and_resume_is_quick(demo: tuple[Outcome, Path]) -> None:
    out = demo[1]
    before = {path: path.stat().st_mtime_ns for path in (out / "run.zarr").rglob("*")}
    spawn("demo", "--out", out).refused(r"D holds capture.yaml, run.zarr, .* already; go on with --resume")
    again = spawn("demo", "--out", out, "--samples", 3, "--steps", 4, "--resume", "--direct")
    assert again.status == 0, again.err
    assert "captured 0 samples" in again.out
    assert {path: path.stat().st_mtime_ns for path in (out / "run.zarr").rglob("*")} == before
    other = spawn("demo", "--out", out, "--samples", 3, "--steps", 5, "--resume", "--direct")
    other.refused("another configuration: call.num_inference_steps; expected .*: 4; got 5")


def test_overwrite_removes_only_what_a_demo_wrote(tmp_path: Path) -> None:
    out = tmp_path / "D"
    (out / "run.zarr").mkdir(parents=True)
    (out / "run.zarr" / "thesis.tex").write_text("precious")
    spawn("demo", "--out", out, "--overwrite").refused("no demo wrote these; choose another --out")
    assert (out / "run.zarr" / "thesis.tex").read_text() == "precious"
