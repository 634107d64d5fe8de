"""Aggregations in a study: store, tables, figures, and their page of the report."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
import xarray as xr
from PIL import Image

from i2am.analysis.aggregations import registry, tables
from i2am.analysis.aggregations.aggregate import aggregate
from i2am.analysis.drawing.aggregation_charts import draw
from i2am.analysis.drawing.short_labels import shortened
from i2am.analysis.grids.resize import linear
from i2am.analysis.options import StudyOptions
from i2am.analysis.reduction.aggregation import Aggregation
from i2am.analysis.study.study import analyze
from i2am.storage.errors import InputError, UnknownName
from tests.analysis.builders import build, layer

LAYERS = [
    layer("net.down.0.attn", gen=(8, 6), ref=(4, 3)),
    layer("net.up.1.attn", heads=3, gen=(4, 3), ref=(4, 3), ref_prefix=1),
]
NAMES = ("entropy", "attention_centre", "time_variance", "head_similarity")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run.zarr"
    return build(path, LAYERS, steps=4, samples=("one", "<b>two</b>", "three"), images=True)[0]


@pytest.fixture(scope="module")
def study(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    result = analyze(run, out, StudyOptions(aggregations=NAMES, figures=0, details=0))
    return out, result


def table(study, name):
    return pl.read_parquet(study[0] / "tables" / f"aggregation-{name}.parquet")


def test_the_table_holds_every_number_once(run, study):
    whole = aggregate(run, "entropy")
    rows = table(study, "entropy")
    assert rows.height == 3 * 4 * (2 + 3)  # samples, steps, heads of each layer: no row for padding
    for row in rows.iter_rows(named=True):
        value = whole.sel(sample=row["sample"], layer=row["layer"], step=row["step"], head=row["head"])
        assert row["value"] == pytest.approx(float(value))
        assert row["timestep"] == run.timesteps[row["step"]]
    assert rows["units"].unique().to_list() == ["share of ln R (0 to 1)"]
    assert rows["run_id"].unique().to_list() == [run.run_id]


def test_maps_are_scored_inside_and_outside_their_mask(run, study):
    rows = table(study, "time_variance").filter(sample="one", layer="net.up.1.attn").to_dicts()
    assert len(rows) == 1
    values = aggregate(run, "time_variance", samples="one").sel(layer="net.up.1.attn").values[0]
    mask = run.image("mask", "one")[..., 0] > 127
    grown = linear(values.astype(np.float64), mask.shape)
    assert rows[0]["value"] == pytest.approx(values.mean())
    assert rows[0]["inside"] == pytest.approx(grown[mask].mean())
    assert rows[0]["outside"] == pytest.approx(grown[~mask].mean())
    assert sorted(table(study, "attention_centre")["label"].unique()) == ["coordinate x", "coordinate y"]
    assert table(study, "head_similarity").height == 3 * (4 + 9)


def test_batches_of_samples_do_not_matter(run, study, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 1)
    found = aggregate(run, "entropy")
    tables.write_table(run, found, tmp_path / "one.parquet")
    assert pl.read_parquet(tmp_path / "one.parquet").equals(table(study, "entropy"))
    assert [path.name for path in tmp_path.iterdir()] == ["one.parquet"]


def test_store_figures_and_page(run, study):
    out, result = study
    stored = xr.open_zarr(out / "aggregations.zarr", group="entropy", consolidated=False)["value"]
    np.testing.assert_allclose(stored, aggregate(run, "entropy"))
    for name in NAMES:
        assert np.asarray(Image.open(out / "figures" / f"aggregation-{name}.png")).std() > 10
    page = (out / "report" / "aggregations.html").read_text()
    assert page.count("<section") == len(NAMES)
    assert not re.search(r"""(src|href)=["'](?!data:|#|\w+\.html)""", page)
    front = (out / "report" / "index.html").read_text()
    assert 'href="aggregations.html"' in front
    assert "aggregations" in result.seconds


def test_a_study_without_them_removes_those_of_an_earlier_one(run, tmp_path):
    analyze(run, tmp_path / "out", StudyOptions(aggregations=("entropy",), figures=0, details=0))
    assert (tmp_path / "out" / "aggregations.zarr").is_dir()
    analyze(run, tmp_path / "out", StudyOptions(figures=0, details=0))
    assert not (tmp_path / "out" / "aggregations.zarr").exists()
    assert not (tmp_path / "out" / "report" / "aggregations.html").exists()
    assert "aggregations.html" not in (tmp_path / "out" / "report" / "index.html").read_text()


def test_what_has_no_answer_is_said(tmp_path):
    run, _ = build(tmp_path / "run.zarr", [layer("p", ref=(0, 0), ref_prefix=1)])
    result = analyze(
        run, tmp_path / "out", StudyOptions(aggregations=("attention_centre", "entropy"), figures=0)
    )
    assert any("Attention centre" in line for line in result.absent)
    page = (tmp_path / "out" / "report" / "aggregations.html").read_text()
    assert "Not computed" in page
    assert "similarity of query and key" in page


def test_an_unknown_name_leaves_no_study(run, tmp_path):
    with pytest.raises(UnknownName, match="entropi"):
        analyze(run, tmp_path / "out", StudyOptions(aggregations=("entropi",)))
    assert not (tmp_path / "out").exists()


def test_one_name_cannot_stand_for_two(run, tmp_path, monkeypatch):
    twin = Aggregation("entropy", lambda attention: attention.scores.mean((2, 3)))
    plain = tables.find
    for module in (tables, registry):
        monkeypatch.setattr(module, "find", lambda name: twin if name == "twin" else plain(name))
    with pytest.raises(InputError, match="twice"):
        analyze(run, tmp_path / "out", StudyOptions(aggregations=("entropy", "twin")))


def test_a_number_for_each_layer_is_drawn_as_dots(run):
    one = Aggregation("largest", lambda attention: attention.scores.max(), keep=(), combine=np.maximum)
    found = aggregate(run, one)
    assert found.dims == ("sample", "layer")
    axes = draw(found).axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [3, 3]


def test_names_are_shortened_by_what_they_share():
    names = [f"unet.{block}.attentions.0.transformer_blocks.0.attn2" for block in ("down.1", "up.2")]
    assert shortened(names) == ["down.1", "up.2"]
    assert shortened(["a.b", "a.b.c"]) == ["b", "b.c"]
    assert shortened(["only.one"]) == ["only.one"]
    long = [f"x{'y' * 40}{n}{'z' * 40}" for n in range(3)]
    assert len(set(shortened(long))) == 3
