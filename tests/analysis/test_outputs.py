"""Outputs never replace a run, nor a folder that something else wrote; a sample may lack an image."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from i2am.analysis.drawing.save_maps import save_maps
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.output_directory import scratch
from i2am.analysis.scores.tables import score_rows
from i2am.analysis.study.study import analyze
from i2am.storage.errors import AlreadyExists, InputError, ShapeMismatch
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.open import open_run
from i2am.storage.tools.verify import verify
from i2am.storage.writing.create import create_run
from tests.flows.conftest import ROOT


@pytest.fixture
def run(tmp_path):
    """Two samples; the second has neither a mask nor a generated image."""
    spec = LayerSpec("l", 2, 4, (6, 6), (4, 4), dtype="float32")
    rng = np.random.default_rng(0)
    shapes = {name: (12, 12, 1 if "mask" in name else 3) for name in ("source", "mask", "reference")}
    with create_run(tmp_path / "r.zarr", [spec], [1, 0], ["a", "b"], image_shapes=shapes) as writer:
        for sample in ("a", "b"):
            with writer.sample(sample) as sink:
                key = rng.normal(size=(2, 16, 4)).astype(np.float32)
                for step in range(2):
                    sink.put("l", step, query=rng.normal(size=(2, 36, 4)).astype(np.float32), key=key)
                for name, shape in shapes.items():
                    if sample == "a" or name == "source":
                        image = np.zeros(shape, np.uint8)
                        image[3:8, 3:8] = 255
                        sink.put_image(name, image)
    return open_run(tmp_path / "r.zarr")


def test_a_run_is_never_replaced(run, tmp_path):
    maps = attribution_maps(run, "r2g")
    for target in (tmp_path / "r.zarr", tmp_path / "r.zarr" / "inside.npz"):
        with pytest.raises(AlreadyExists, match="run"):
            save_maps(maps, target, run, overwrite=True)
    for out in (tmp_path / "r.zarr", tmp_path / "r.zarr" / "study"):
        with pytest.raises(AlreadyExists, match="outside every run"):
            analyze(run, out, overwrite=True)
    assert verify(tmp_path / "r.zarr").ok
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_folder_of_something_else_is_never_replaced(run, tmp_path):
    maps = attribution_maps(run, "r2g")
    mine = tmp_path / "mine.zarr"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(AlreadyExists, match="not a folder of saved maps"):
        save_maps(maps, mine, run, overwrite=True)
    assert (mine / "notes.txt").read_text() == "keep"
    save_maps(maps, tmp_path / "maps.zarr", run)
    save_maps(maps, tmp_path / "maps.zarr", run, overwrite=True)
    with pytest.raises(AlreadyExists, match="exists"):
        save_maps(maps, tmp_path / "maps.zarr", run)


def test_saved_maps_are_written_in_blocks_and_are_the_maps(run, tmp_path, monkeypatch):
    monkeypatch.setattr("i2am.analysis.maps.write.BLOCK", 1)
    maps = attribution_maps(run, "r2g", "time", time_groups=2)
    save_maps(maps, tmp_path / "maps.zarr")
    found = xr.open_zarr(tmp_path / "maps.zarr", consolidated=False)[
        "r2g" if maps.name == "r2g" else maps.name or "maps"
    ]
    xr.testing.assert_identical(found.compute().drop_encoding(), maps.compute().drop_encoding())


def test_a_sample_without_its_images_leaves_the_others_alone(run, tmp_path):
    result = analyze(run, tmp_path / "out")
    assert result.to_json()["samples"] == ["a", "b"]
    score = score_rows(attribution_maps(run, "r2g").sel(sample="b"), None, 3.0)
    assert "no image 'mask'" in score[0]["note"]
    specific = attribution_maps(run, "g2r", "specific", at="mask").compute()
    assert np.isfinite(specific.sel(sample="a")).all()
    assert np.isnan(specific.sel(sample="b")).all()
    save_maps(attribution_maps(run, "g2r"), tmp_path / "maps.png", run)


def test_questions_of_the_wrong_form_are_named(run):
    with pytest.raises(InputError, match="steps"):
        attribution_maps(run, "r2g", steps="0:2")
    with pytest.raises(ShapeMismatch, match="aspect ratio"):
        attribution_maps(run, "g2r", "specific", at=np.ones((33, 7), bool))


def test_scratch_folders_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    """Whose process was killed; what a worker wrote when its command had ended; what has just been born."""
    killed = "import os, sys; from pathlib import Path; from i2am.analysis.output_directory import scratch\n"
    killed += (
        "with scratch(Path(sys.argv[1]), '.s-') as made:\n (made / 'half').touch(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path)], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob(".s-*/half")] == ["half"]
    (tmp_path / ".s-late/attempt").mkdir(parents=True)
    (tmp_path / ".s-born").mkdir()
    (tmp_path / ".s-old").mkdir()
    os.utime(tmp_path / ".s-old", (0, 0))
    (tmp_path / ".s-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").touch()
    with scratch(tmp_path, ".s-") as one, scratch(tmp_path, ".s-") as other:
        assert one.is_dir()
        assert {path.name for path in tmp_path.glob(".s-*")} == {one.name, other.name, ".s-born", ".s-link"}
    assert {path.name for path in tmp_path.glob(".s-*")} == {".s-born", ".s-link"}
    assert (tmp_path / "elsewhere/kept").exists()
