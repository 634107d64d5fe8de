from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xarray as xr
from PIL import Image

import i2am.analysis.study.study
from i2am.analysis.drawing.save_maps import save_maps
from i2am.analysis.events import SampleRefused, StageAdvanced, StageStarted, StudyFinished
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.options import StudyOptions
from i2am.analysis.scores.imacs import imacs
from i2am.analysis.study.study import OUTPUTS, analyze
from i2am.storage.errors import AlreadyExists, DamagedSample, InputError, NoAnswer, NotFound
from tests.analysis.builders import build, damage, layer

ROOT = Path(__file__).parents[2]
LAYERS = [layer("a", gen=(8, 6), ref=(4, 3)), layer("b", gen=(4, 3), ref=(4, 3), ref_prefix=1)]


@pytest.fixture
def run(tmp_path):
    return build(tmp_path / "run.zarr", LAYERS, steps=4, samples=("one", "two", "three"), images=True)[0]


def test_a_study_writes_everything_and_only_that(run, tmp_path):
    events = []
    result = analyze(run.path, tmp_path / "out", on_event=events.append)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(OUTPUTS) - {"aggregations.zarr"}
    assert result.samples == ("one", "two", "three")
    assert result.refusals == ()
    assert result.absent == ()
    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    assert stages == ["check", "marginals", "maps", "tables", "baselines", "figures", "report"]
    for stage in stages[1:]:
        last = [event for event in events if isinstance(event, StageAdvanced) and event.stage == stage][-1]
        assert last.done == last.total
    assert isinstance(events[-1], StudyFinished)
    for name in ("sample-0000", "sample-0002", "density", "imacs", "profiles"):
        assert np.asarray(Image.open(tmp_path / "out" / "figures" / f"{name}.png")).std() > 10
    assert json.loads((tmp_path / "out" / "study.json").read_text())["samples"] == ["one", "two", "three"]


def test_a_joint_softmax_may_have_two_grids(tmp_path):
    """Baselines of both directions, whose maps have different sizes."""
    layers = [layer("j", gen=(8, 6), ref=(4, 3), lse=True)]
    run = build(tmp_path / "run.zarr", layers, steps=2, samples=("one",), images=True)[0]
    result = analyze(run, tmp_path / "out", StudyOptions(figures=0))
    for direction in ("r2g", "g2r"):
        stored = xr.open_zarr(result.maps, group=f"joint/{direction}", consolidated=False)["unified"]
        np.testing.assert_array_equal(stored, attribution_maps(run, direction, method="joint"))


def test_stored_maps_and_tables_say_the_same_as_the_functions(run, tmp_path):
    result = analyze(run, tmp_path / "out", StudyOptions(penalty=2.0, figures=0))
    for direction in ("r2g", "g2r"):
        stored = xr.open_zarr(result.maps, group=direction, consolidated=False)
        assert set(stored.data_vars) == {"unified", "by_time", "by_head", "by_layer", "specific"}
        maps = attribution_maps(run, direction)
        np.testing.assert_array_equal(stored["unified"], maps)
        image = {"r2g": "mask", "g2r": "reference_mask"}[direction]
        masks = np.stack([run.image(image, sample)[..., 0] for sample in run.samples])
        table = pl.read_parquet(tmp_path / "out" / "tables" / "unified.parquet").filter(
            pl.col("direction") == direction
        )
        np.testing.assert_allclose(table["imacs"], imacs(maps, masks, penalty=2.0))
        assert table["sample"].to_list() == list(run.samples)
    rows = {name: table.height for name, table in result.tables.items() if name != "summary"}
    assert rows == {"unified": 6, "time": 24, "head": 12, "layer": 12, "specific": 6, "baselines": 6}
    whole = result.tables["unified"]
    share = (
        whole["inside"]
        * whole["area"]
        / (whole["inside"] * whole["area"] + whole["outside"] * (1 - whole["area"]))
    )
    np.testing.assert_allclose(share, whole["share"])


def test_a_damaged_sample_is_refused_by_name_and_the_others_are_unchanged(run, tmp_path):
    before = analyze(run, tmp_path / "before", StudyOptions(store=False, figures=0))
    damage(tmp_path / "run.zarr", index=1)
    events = []
    after = analyze(
        run.path, tmp_path / "after", StudyOptions(store=False, figures=0), on_event=events.append
    )
    assert after.samples == ("one", "three")
    assert [refusal.sample for refusal in after.refusals] == ["two"]
    assert "layer" in after.refusals[0].reason
    assert [event.sample for event in events if isinstance(event, SampleRefused)] == ["two"]
    for name, table in after.tables.items():
        if name == "summary":
            continue
        assert table.equals(before.tables[name].filter(pl.col("sample") != "two"))
    assert "damaged, left out" in after.report.read_text()


def test_when_every_sample_is_damaged_the_study_says_so_and_leaves_the_last_one(run, tmp_path):
    analyze(run, tmp_path / "out", StudyOptions(store=False, figures=0))
    page = (tmp_path / "out" / "report" / "index.html").read_bytes()
    for index in range(3):
        damage(tmp_path / "run.zarr", index)
    with pytest.raises(DamagedSample, match=r"every other sample asked for \(3\)"):
        analyze(run.path, tmp_path / "out", StudyOptions(store=False, figures=0), again=True)
    assert (tmp_path / "out" / "report" / "index.html").read_bytes() == page
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(OUTPUTS) - {"aggregations.zarr"}


def test_a_study_replaces_a_study_and_nothing_else(run, tmp_path):
    out = tmp_path / "out"
    (out / "notes").mkdir(parents=True)
    analyze(run, out, StudyOptions(figures=0))
    analyze(run, out, StudyOptions(samples=("one",), figures=0))
    assert json.loads((out / "study.json").read_text())["samples"] == ["one"]
    assert (out / "notes").is_dir()
    (out / "study.json").unlink()
    with pytest.raises(AlreadyExists, match="was not written by a study"):
        analyze(run, out)
    analyze(run, out, StudyOptions(figures=0), overwrite=True)


def test_outputs_that_cannot_be(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AlreadyExists, match="is a file"):
        analyze(run, tmp_path / "file")
    with pytest.raises(NotFound, match="cannot make"):
        analyze(run, tmp_path / "file" / "out")


def test_a_study_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(i2am.analysis.study.study, "collect_tables", fail)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        analyze(run, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_runs_without_masks_images_or_places(tmp_path):
    bare, _ = build(tmp_path / "bare.zarr", LAYERS)
    result = analyze(bare, tmp_path / "bare")
    assert result.tables["unified"]["imacs"].null_count() == 2
    assert any("no image 'mask'" in line for line in result.absent)
    pooled, _ = build(tmp_path / "pooled.zarr", [layer("p", ref=(1, 1))], images=True)
    result = analyze(pooled, tmp_path / "pooled")
    assert set(result.tables["unified"]["kind"]) == {"similarity"}
    assert any(line.startswith("G2R, unified level") for line in result.absent)
    assert "similarity" in result.report.read_text()


def test_an_empty_mask_is_a_note_and_no_number(tmp_path, monkeypatch):
    from tests.analysis import builders

    plain = builders.pictures

    def pictures(rng):
        return plain(rng) | {"mask": np.zeros((24, 18, 1), np.uint8)}

    monkeypatch.setattr(builders, "pictures", pictures)
    run, _ = build(tmp_path / "run.zarr", LAYERS, images=True)
    result = analyze(run, tmp_path / "out")
    table = result.tables["unified"].filter(pl.col("direction") == "r2g")
    assert table["imacs"].to_list() == [None]
    assert "a mask that is empty" in table["note"][0]


@pytest.mark.parametrize("ending", [".npz", ".zarr", ".png"])
def test_saved_maps(run, tmp_path, ending):
    maps = attribution_maps(run, "g2r", "time", time_groups=2)
    target = tmp_path / f"maps{ending}"
    save_maps(maps, target, run)
    with pytest.raises(AlreadyExists, match="exists; name another output"):
        save_maps(maps, target, run)
    save_maps(maps, target, run, overwrite=True)
    if ending == ".npz":
        with np.load(target) as saved:
            np.testing.assert_array_equal(saved["maps"], maps)
            assert list(saved["coord_time"]) == ["0-1", "2-3"]
            assert json.loads(str(saved["attrs"]))["direction"] == "g2r"
    elif ending == ".zarr":
        np.testing.assert_array_equal(xr.open_zarr(target, consolidated=False)["g2r_time"], maps)
    else:
        assert np.asarray(Image.open(target)).std() > 10
    assert not list(tmp_path.glob(".maps-*"))


def test_saving_refuses_other_endings(run, tmp_path):
    with pytest.raises(InputError, match=r"ends in .npz, .zarr or .png; got '.jpg'"):
        save_maps(attribution_maps(run, "r2g"), tmp_path / "maps.jpg")
    with pytest.raises(NotFound, match="does not exist"):
        save_maps(attribution_maps(run, "r2g"), tmp_path / "none" / "maps.npz")


def test_the_whole_study_runs_where_no_model_library_can_be_imported(run, tmp_path):
    code = f"""
    import sys
    for name in ("torch", "diffusers", "transformers", "prefect"):
        sys.modules[name] = None  # importing it raises ImportError
    from i2am.analysis.study.study import analyze
    analyze({run.path!r}, {str(tmp_path / "out")!r})
    """
    subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], cwd=ROOT, check=True, timeout=270
    )
    assert (tmp_path / "out" / "report" / "index.html").is_file()


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "dask", "xarray", "polars", "matplotlib", "numpy"}
    code = f"import i2am.analysis, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("options", [{"protocol": "official"}, {"aggregations": ("entropy",)}])
def test_a_sample_that_is_damaged_after_its_marginals_were_made_is_left_out(run, tmp_path, options):
    analyze(run, tmp_path / "first", StudyOptions(figures=0, details=0))
    damage(tmp_path / "run.zarr", index=1)
    told = []
    out = tmp_path / "out"
    result = analyze(
        run.path, out, StudyOptions(figures=0, details=0, **options), on_event=told.append, overwrite=True
    )
    assert result.samples == ("one", "three")
    assert [entry.sample for entry in result.refusals] == ["two"]
    assert [event.sample for event in told if isinstance(event, SampleRefused)] == ["two"]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_an_official_study_of_a_size_keeps_the_reference_grid(run, tmp_path):
    options = StudyOptions(protocol="official", size=(64, 48), layers=("a",), figures=0, details=0)
    result = analyze(run, tmp_path / "out", options)
    sizes = {way: xr.open_zarr(result.maps, group=way, consolidated=False).sizes for way in ("r2g", "g2r")}
    assert (sizes["r2g"]["y"], sizes["r2g"]["x"]) == (64, 48)
    assert (sizes["g2r"]["y"], sizes["g2r"]["x"]) == (4, 3)
    assert result.tables["unified"].filter(pl.col("direction") == "g2r").height == 3


def test_a_study_without_any_answer_says_so(tmp_path):
    run, _ = build(tmp_path / "run.zarr", [layer("unet.mid_block.attn2")], images=True)
    with pytest.raises(NoAnswer, match="middle block"):
        analyze(run, tmp_path / "out", StudyOptions(protocol="official"))


@pytest.mark.parametrize("wrong", [{"penalty": -1.0}, {"protocol": "oficial"}, {"confidence": 95}])
def test_wrong_options_are_refused_before_anything_is_computed(run, tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        analyze(run, tmp_path / "out", StudyOptions(**wrong))
    assert not (tmp_path / "out").exists()
