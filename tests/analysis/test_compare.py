"""Two runs compared: against plain numpy, and where there is nothing, or nothing sure, to say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
import xarray as xr
from PIL import Image

import i2am.analysis.compare.compare
from i2am.analysis.compare import colours
from i2am.analysis.compare.compare import OUTPUTS, compare
from i2am.analysis.compare.maps import paired_maps
from i2am.analysis.drawing.colours import paint, palette
from i2am.analysis.events import StageAdvanced, StageStarted, StudyFinished
from i2am.analysis.grids.regions import image_mask
from i2am.analysis.grids.resize import linear
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.scores.imacs import imacs
from i2am.storage.errors import AlreadyExists, DamagedSample, InputError, NoAnswer, UnknownName
from i2am.storage.reading.open import open_runs
from i2am.storage.tools.prune import prune
from tests.analysis.builders import build, damage, layer

LAYERS = [layer("a", gen=(8, 6), ref=(4, 3)), layer("b", gen=(4, 3), ref=(4, 3), ref_prefix=1)]
COMMON = ["q", "r", "s"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs with three samples in common, and one more each."""
    place = tmp_path_factory.mktemp("two")
    seen = {"kernel": "softmax", "steps": 4, "rows": 8, "largest_difference": 0.0, "unwitnessed_steps": 0}
    witness = {sample: {"a": seen} for sample in ("p", *COMMON)}
    a, _ = build(place / "a.zarr", LAYERS, steps=4, samples=("p", *COMMON), images=True, witness=witness)
    b, _ = build(place / "b.zarr", LAYERS, steps=4, samples=(*COMMON[::-1], "t"), images=True, seed=5)
    return a, b


@pytest.fixture(scope="module")
def found(two, tmp_path_factory):
    return compare(*two, tmp_path_factory.mktemp("made") / "out", time_groups=2, details=2)


def literal_interval(values, confidence=0.95, resamples=2000):
    """Percentile bootstrap of the mean over axis 0, draw by draw."""
    chance, means = np.random.default_rng(0), []
    for _ in range(resamples):
        means.append(values[chance.integers(0, len(values), len(values))].mean(axis=0))
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
@pytest.mark.parametrize("level", ["unified", "time", "head", "layer"])
def test_maps_equal_plain_numpy(two, found, direction, level):
    a, b = (
        attribution_maps(run, direction, level, samples=COMMON, time_groups=2).values.astype(float)
        for run in two
    )
    maps = found.maps[direction, level]
    np.testing.assert_allclose(maps["mean_a"], a.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(maps["mean_b"], b.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(maps["difference"], (b - a).mean(axis=0), rtol=1e-9, atol=1e-12)
    low, high = literal_interval(b - a)
    np.testing.assert_allclose(maps["low"], low, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(maps["high"], high, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(maps["excludes_zero"], (low > 0) | (high < 0))
    summary = found.tables["map_summary"].filter(direction=direction, level=level)
    shares = ((low > 0) | (high < 0)).reshape(summary.height, -1).mean(axis=1)
    np.testing.assert_allclose(summary["excluding_zero"], shares)
    pairs = found.tables["maps"].filter(direction=direction, level=level)
    assert pairs["sample"].unique(maintain_order=True).to_list() == COMMON
    planes = [values.reshape(pairs.height, -1) for values in (a, b)]
    np.testing.assert_allclose(pairs["distance"], np.abs(planes[1] - planes[0]).mean(axis=1))
    wanted = [np.corrcoef(one, other)[0, 1] for one, other in zip(*planes, strict=True)]
    np.testing.assert_allclose(pairs["correlation"], wanted, rtol=1e-9)
    by_label = pairs.group_by("label", maintain_order=True).agg(pl.col("correlation").mean())
    np.testing.assert_allclose(summary["correlation"], by_label["correlation"])


@pytest.mark.parametrize("direction", ["r2g", "g2r"])
@pytest.mark.parametrize("level", ["unified", "head"])
def test_scores_equal_plain_numpy(two, found, direction, level):
    name = {"r2g": "mask", "g2r": "reference_mask"}[direction]
    numbers = {}
    for which, run in zip("ab", two, strict=True):
        masks = [image_mask(run.image(name, sample)) for sample in COMMON]
        maps = attribution_maps(run, direction, level, samples=COMMON)
        numbers["imacs", which] = imacs(maps, np.stack(masks)).values
        grown = linear(maps.values, masks[0].shape)
        numbers["inside", which] = np.stack(
            [values[..., mask].mean(axis=-1) for values, mask in zip(grown, masks, strict=True)]
        )
    table = found.tables["scores"].filter(direction=direction, level=level)
    for metric in ("imacs", "inside"):
        a, b = numbers[metric, "a"], numbers[metric, "b"]
        np.testing.assert_allclose(table[f"{metric}_a"], a.reshape(-1), rtol=1e-6)
        np.testing.assert_allclose(table[f"{metric}_difference"], (b - a).reshape(-1), rtol=1e-5, atol=1e-7)
        rows = found.tables["summary"].filter(direction=direction, level=level, metric=metric)
        low, high = literal_interval((b - a).reshape(3, -1))
        for column, wanted in (
            ("mean_a", a.mean(axis=0)),
            ("mean_b", b.mean(axis=0)),
            ("difference", (b - a).mean(axis=0)),
            ("low", low),
            ("high", high),
            ("rose", (b > a).mean(axis=0)),
        ):
            np.testing.assert_allclose(rows[column], np.ravel(wanted), rtol=1e-5, atol=1e-6)
        assert rows["pairs"].to_list() == [3] * rows.height


def test_a_comparison_writes_everything_and_only_that(two, found):
    assert {path.name for path in found.out.iterdir()} == set(OUTPUTS)
    for (direction, level), maps in found.maps.items():
        stored = xr.open_zarr(found.out / "compare.zarr", group=f"{direction}/{level}", consolidated=False)
        xr.testing.assert_equal(stored.load(), maps)
        assert stored.attrs["pairs"] == 3
    for name, table in found.tables.items():
        assert pl.read_parquet(found.out / "tables" / f"{name}.parquet").equals(table)
    figures = {path.name for path in (found.out / "figures").iterdir()}
    assert figures == {
        "unified.png", "time.png", "head.png", "layer.png", "imacs.png", "pair-0000.png", "pair-0001.png",
    }  # fmt: skip
    for name in figures:
        assert np.asarray(Image.open(found.out / "figures" / name)).std() > 10
    facts = json.loads((found.out / "compare.json").read_text())
    assert (facts["samples"], facts["alone"]) == (COMMON, {"a": 1, "b": 1})
    assert facts["a"] == [two[0].path]
    assert {row["metric"] for row in facts["summary"]} == {"imacs", "inside", "outside", "share"}


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.ids = [], [], set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.links += [found[name] for name in ("src", "href") if found.get(name)]
        self.ids |= {found["id"]} if "id" in found else set()


def test_the_page_needs_nothing_else_and_its_links_lead_somewhere(found):
    text = found.report.read_text()
    page = _Page()
    page.feed(text)
    assert "script" not in page.tags
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert "Left out: 1 in A alone, 1 in B alone" in text
    row = found.tables["summary"].filter(level="unified", direction="r2g", metric="imacs").row(0, named=True)
    assert f"{row['difference']:+.3g}" in text


def test_a_run_compared_with_itself_differs_in_nothing(two, tmp_path):
    same = compare(two[0], two[0], tmp_path / "same", details=1)
    for maps in same.maps.values():
        for name in ("difference", "low", "high"):
            assert (maps[name] == 0).all()
        assert not maps["excludes_zero"].any()
        np.testing.assert_array_equal(maps["mean_a"], maps["mean_b"])
    assert (same.tables["maps"]["distance"] == 0).all()
    np.testing.assert_allclose(same.tables["maps"]["correlation"], 1)
    for column in ("difference", "low", "high", "rose"):
        assert (same.tables["summary"][column] == 0).all()
    assert (same.tables["map_summary"]["excluding_zero"] == 0).all()
    # Nothing is outlined, so the difference is one colour throughout: that of the middle of the scale.
    drawn = colours.to_density(same.maps["r2g", "unified"]["difference"], 1.0)
    assert np.unique(paint(drawn, colours.DENSITY_END, (32, 24)).reshape(-1, 3), axis=0).shape == (1, 3)
    assert "0% of the pixels outlined" in same.report.read_text()


def test_one_pair_has_no_interval_and_says_so(two, tmp_path):
    one = compare(*two, tmp_path / "one", samples=["r"], details=1)
    maps = one.maps["g2r", "head"]
    assert np.isnan(maps["low"]).all()
    assert np.isnan(maps["high"]).all()
    assert not maps["excludes_zero"].any()
    assert np.isfinite(maps["difference"]).all()
    assert one.tables["summary"]["low"].null_count() == one.tables["summary"].height
    assert one.tables["map_summary"]["excluding_zero"].null_count() == one.tables["map_summary"].height
    assert any("at least two pairs" in line for line in one.absent)
    assert "There is one pair: no interval" in one.report.read_text()


def test_other_numbers_of_steps_heads_and_layers(tmp_path):
    a, _ = build(tmp_path / "a.zarr", LAYERS, steps=6, samples=("p", "q"), images=True)
    layers = [layer("b", heads=4, gen=(4, 3), ref=(4, 3), ref_prefix=1), layer("c", heads=4)]
    b, _ = build(tmp_path / "b.zarr", layers, steps=3, samples=("p", "q"), images=True)
    found = compare(a, b, time_groups=5)
    assert found.pairing.layers == {"r2g": ("b",), "g2r": ("b",)}
    assert list(found.maps["r2g", "time"]["time"].values) == ["0-1 | 0-0", "2-3 | 1-1", "4-5 | 2-2"]
    assert set(found.maps) == {(w, level) for w in ("r2g", "g2r") for level in ("unified", "time", "layer")}
    lines = " ".join(found.absent)
    assert "R2G, head level: layer 'b' has 2 heads in A and 4 in B" in lines
    assert "1 layers that answer in A alone, such as a" in lines
    assert "1 layers that answer in B alone, such as c" in lines
    own = [attribution_maps(run, "r2g", layers="b").values.astype(float) for run in (a, b)]
    np.testing.assert_allclose(found.maps["r2g", "unified"]["difference"], (own[1] - own[0]).mean(axis=0))
    times = found.tables["scores"].filter(level="time", direction="r2g", sample="q")
    assert times["label"].to_list() == ["0-1 | 0-0", "2-3 | 1-1", "4-5 | 2-2"]


def test_other_grids_are_compared_at_the_larger_or_at_the_size_asked_for(two, tmp_path):
    layers = [layer("a", gen=(12, 9), ref=(8, 6)), layer("b", gen=(4, 3), ref=(8, 6), ref_prefix=1)]
    b, _ = build(tmp_path / "b.zarr", layers, steps=2, samples=("q", "r"), images=True)
    found = compare(two[0], b)
    own = [
        attribution_maps(run, "r2g", samples=["q", "r"], size=(12, 9)).values.astype(float)
        for run in (two[0], b)
    ]
    np.testing.assert_allclose(found.maps["r2g", "unified"]["difference"], (own[1] - own[0]).mean(axis=0))
    assert found.maps["g2r", "layer"].sizes["y"] == 8
    assert found.tables["scores"]["imacs_difference"].null_count() == 0
    wide = [layer("a", gen=(6, 8), ref=(4, 3)), layer("b", gen=(3, 4), ref=(4, 3), ref_prefix=1)]
    c, _ = build(tmp_path / "c.zarr", wide, steps=2, samples=("q", "r"))
    with pytest.raises(InputError, match=r"aspect ratio.*size"):
        compare(two[0], c)
    square = compare(two[0], c, size=(8, 8))
    assert square.maps["r2g", "unified"]["mean_a"].shape == (8, 8)
    assert any("no image 'mask' of this sample" in line for line in square.absent)
    assert square.tables["scores"].filter(direction="r2g")["imacs_a"].null_count() == 0


def test_official_maps_are_compared_in_their_own_units(two, tmp_path):
    found = compare(*two, tmp_path / "out", protocol="official", layers=["a"], details=1)
    assert found.maps["r2g", "unified"].sizes["y"] == 64
    page = found.report.read_text()
    assert "24 rows equal those of softmax within 0.0e+00<" in page  # of three pairs in one layer
    assert "none of the stored attention was compared with the model&#39;s kernel" in page
    assert "× the mean of these maps" in page
    assert "official protocol" in page


def test_shards_compare_as_the_run_that_they_are_parts_of(two, found, tmp_path):
    for number, part in enumerate((["r", "p"], ["q", "s"])):
        prune(two[0], tmp_path / f"a-{number}.zarr", samples=part)
    many = compare(tmp_path / "a-*.zarr", two[1], time_groups=2, samples=COMMON)
    for key, maps in found.maps.items():
        xr.testing.assert_equal(many.maps[key], maps)
    assert many.tables["scores"].equals(found.tables["scores"])
    with pytest.raises(NoAnswer, match="samples of the same id"):
        compare(open_runs(tmp_path / "a-*.zarr", label=True), two[1])


def test_maps_are_made_a_block_of_samples_at_a_time(two, found, monkeypatch):
    """No graph holds all samples; the numbers are the same."""
    asked = []

    def spy(*args, samples, **options):
        asked.append(len(samples))
        return attribution_maps(*args, samples=samples, **options)

    monkeypatch.setattr("i2am.analysis.compare.maps.attribution_maps", spy)
    monkeypatch.setattr("i2am.analysis.maps.write.BLOCK", 1)
    single = compare(*two, time_groups=2)
    assert set(asked) == {1}
    for key, maps in found.maps.items():
        xr.testing.assert_equal(single.maps[key], maps)


def test_a_sample_damaged_in_either_run_is_left_out(two, tmp_path):
    prune(two[0], tmp_path / "a.zarr", samples=COMMON)
    prune(two[1], tmp_path / "b.zarr", samples=COMMON)
    damage(tmp_path / "a.zarr", 0)
    damage(tmp_path / "b.zarr", 1)
    found = compare(tmp_path / "a.zarr", tmp_path / "b.zarr", tmp_path / "out", store=False)
    assert (found.pairing.samples, [refusal.sample for refusal in found.refusals]) == (("s",), ["q", "r"])
    assert "2 damaged samples left out" in found.report.read_text()
    assert not (tmp_path / "a.marginals.zarr").exists()
    damage(tmp_path / "a.zarr", 2)
    before = (tmp_path / "out" / "compare.json").read_bytes()
    with pytest.raises(DamagedSample, match=r"every other sample asked for \(3\)"):
        compare(tmp_path / "a.zarr", tmp_path / "b.zarr", tmp_path / "out", store=False)
    assert (tmp_path / "out" / "compare.json").read_bytes() == before


def test_runs_that_have_nothing_in_common(two, tmp_path):
    other, _ = build(tmp_path / "other.zarr", LAYERS, samples=("x",))
    with pytest.raises(NoAnswer, match=r"samples of the same id in both.*got 'p', \.\.\. and 'x'"):
        compare(two[0], other, tmp_path / "out")
    foreign, _ = build(tmp_path / "foreign.zarr", [layer("z")], samples=("q",))
    with pytest.raises(NoAnswer, match="layers of the same name"):
        compare(two[0], foreign, tmp_path / "out")
    with pytest.raises(UnknownName, match="unknown sample 't'"):
        compare(*two, tmp_path / "out", samples=["t"])
    with pytest.raises(UnknownName, match="unknown protocol"):
        compare(*two, tmp_path / "out", protocol="none")
    assert not (tmp_path / "out").exists()


def test_a_similarity_beside_attention_is_named(two, tmp_path):
    pooled, _ = build(tmp_path / "pooled.zarr", [layer("a", ref=(1, 1))], samples=("q", "r"), images=True)
    found = compare(two[0], pooled, layers=["a"])
    assert any("R2G is attention in A and similarity in B" in line for line in found.absent)
    assert any(line.startswith("G2R: ") for line in found.absent)


def test_only_a_comparison_is_replaced(two, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "tables").mkdir(parents=True)
    with pytest.raises(AlreadyExists, match="was not written by a comparison"):
        compare(*two, out)
    events = []
    compare(*two, out, details=0, on_event=events.append, overwrite=True)
    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    assert stages[0] == "check"
    assert stages[-2:] == ["figures", "report"]
    for stage in set(stages) - {"check"}:
        last = [event for event in events if isinstance(event, StageAdvanced) and event.stage == stage][-1]
        assert last.done == last.total
    assert isinstance(events[-1], StudyFinished)
    page = (out / "report" / "index.html").read_bytes()

    def fail(*args, **kwargs):
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(i2am.analysis.compare.compare, "summarise_scores", fail)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        compare(*two, out)
    assert (out / "report" / "index.html").read_bytes() == page
    assert {path.name for path in out.iterdir()} == set(OUTPUTS)


def test_names_cannot_become_markup(two, tmp_path):
    name = '<script>alert("x")</script>'
    runs = [build(tmp_path / f"{n}.zarr", LAYERS[:1], samples=(name,), seed=n)[0] for n in (0, 1)]
    text = compare(*runs, tmp_path / "out").report.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_maps_that_are_not_finite_or_flat(tmp_path):
    attrs = {"direction": "r2g", "level": "unified"}
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 4, 5, 6)).astype(np.float32)
    values[0, 1, 2, 3] = np.nan
    values[1, 2] = 1.1
    a, b = (
        xr.DataArray(each, dims=("sample", "y", "x"), coords={"sample": list("pqrs")}, attrs=attrs)
        for each in values
    )
    found = paired_maps(a, b, tmp_path, 0.9)
    assert list(tmp_path.iterdir()) == []
    exact = values.astype(np.float64)
    np.testing.assert_allclose(found.maps["difference"], np.nanmean(exact[1] - exact[0], axis=0))
    there = np.isfinite(exact[0, :, 2, 3])
    np.testing.assert_allclose(found.maps["mean_b"][2, 3], exact[1, there, 2, 3].mean())
    assert found.pairs["distance"].is_null().to_list() == [False, True, False, False]
    assert found.pairs["correlation"].is_null().to_list() == [False, True, True, False]


def test_blocks_of_pixels_change_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    attrs = {"direction": "r2g", "level": "unified"}
    a, b = (
        xr.DataArray(
            rng.normal(size=(5, 7, 9)), dims=("sample", "y", "x"), coords={"sample": range(5)}, attrs=attrs
        )
        for _ in range(2)
    )
    whole = paired_maps(a, b, tmp_path, 0.95)
    monkeypatch.setattr("i2am.analysis.compare.maps.BLOCK_BYTES", 8 * 2000 * 10)
    parts = paired_maps(a, b, tmp_path, 0.95)
    xr.testing.assert_allclose(parts.maps, whole.maps, rtol=1e-12)


def test_the_scale_of_differences():
    assert colours.difference_limit([np.zeros(4)]) == 1e-4
    assert colours.difference_limit([np.array([0.013, -0.018, np.nan])]) == 0.02
    ends = paint(colours.to_density(np.array([[-2.0, 0.0, 2.0]]), 2.0), colours.DENSITY_END, (1, 3))
    np.testing.assert_array_equal(ends[0, [0, 2]], palette(255)[[0, -1]])
    assert [words for _, words in colours.difference_ticks(0.5, "×")] == [
        "-0.5×",
        "-0.25×",
        "0",
        "+0.25×",
        "+0.5×",
    ]
    assert re.search(r"rgb\(", colours.difference_bar(1.0, "×", "B − A").colours[0])
