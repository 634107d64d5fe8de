from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from i2am.analysis.drawing.colours import palette
from i2am.analysis.drawing.images import MAP_COLOURS
from i2am.analysis.drawing.panels import Panel, block
from i2am.analysis.maps.mean_over_samples import mean_maps
from i2am.analysis.maps.stored import Collected
from i2am.analysis.options import StudyOptions
from i2am.analysis.report import thumbnails
from i2am.analysis.report.templating import environment
from i2am.analysis.study.study import analyze
from tests.analysis.builders import build, layer

HOSTILE = (
    '<script>document.title="owned"</script>',
    '"><img src=x onerror="document.title=1">',
    "{{ 7*7 }} & 'q'",
    "$\\frac{",
)
LAYERS = [layer("a", gen=(8, 6), ref=(4, 3))]
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Page(HTMLParser):
    """Tags, links, text and pictures (words, data URL) of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.ids, self.words, self.pictures = [], [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.loads += [found[name] for name in ("src", "href", "data", "srcset") if found.get(name)]
        self.ids |= {found["id"]} if "id" in found else set()
        self.pictures += [(found["alt"], found["src"])] if tag == "img" else []

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    attrs = {"model": "</title><script>alert(1)</script>", "software": {"torch": "<b>2</b>"}}
    run, _ = build(place / "run.zarr", LAYERS, steps=4, samples=HOSTILE, images=True, attrs=attrs)
    return analyze(run, place / "out", StudyOptions(details=3, figures=0)).report


PAGES = ("index", "time", "head", "layer", "specific")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_nothing_else(page, name):
    text = (page.parent / f"{name}.html").read_text()
    found = Page(text)
    assert [link for link in found.loads if link.startswith("data:")]
    links = {f"{other}.html" for other in PAGES}
    assert all(
        link.startswith(("data:image/png;base64,", "#")) or link.partition("#")[0] in links
        for link in found.loads
    )
    assert not re.search(r"@import|https?://", text)
    assert all(text[at.end() :].startswith("data:image/png;base64,") for at in re.finditer(r"url\(", text))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    assert ("script-src" in policy) == (found.tags.count("script") == 1) == (name == "index")


@pytest.mark.parametrize("name", PAGES)
def test_everything_from_data_is_escaped(page, name):
    text = (page.parent / f"{name}.html").read_text()
    found = Page(text)
    assert found.tags.count("script") == (1 if name == "index" else 0)
    assert found.tags.count("title") - 1 == text.count("<title>") - 1
    words = " ".join(found.words)
    for sample in HOSTILE if name == "index" else HOSTILE[:3]:
        assert sample in words
    assert "49 &" not in words
    assert not re.search(r"<img src=x", text)


def test_details_are_bounded_and_every_sample_is_in_the_table(page):
    found = Page(page.read_text())
    assert found.tags.count("article") == 3
    assert "first 3 of 4" in page.read_text()
    assert found.tags.count("img") == 3 * 7


def test_links_between_pages_resolve(page):
    pages = {f"{name}.html": Page((page.parent / f"{name}.html").read_text()) for name in PAGES}
    for name, found in pages.items():
        for link in (link for link in found.loads if not link.startswith("data:")):
            file, _, anchor = link.partition("#")
            assert not anchor or anchor in pages[file or name].ids, link
        assert {file for file in found.loads if file.endswith(".html")} == set(pages)
    front = {link for link in pages["index.html"].loads if "#s" in link and "html" in link}
    assert front == {f"{name}.html#s{n}" for name in PAGES[1:] for n in range(3)}


@pytest.mark.parametrize(
    ("name", "maps", "means"), [("time", 2 * (1 + 4), 8), ("head", 2 * 3, 4), ("layer", 2 * 2, 2)]
)
def test_a_level_has_every_map_of_every_sample_shown_and_their_means(page, name, maps, means):
    text = (page.parent / f"{name}.html").read_text()
    found = Page(text)
    assert found.tags.count("img") == 3 * maps + means
    assert text.count('loading="lazy"') == found.tags.count("img")
    assert text.count("--backdrop: url(data:") == 3 * 2
    assert found.tags.count("article") == 3
    assert "The first 3 of 4" in text
    assert "positional bias" in text
    assert text.count('class="ramp"') == 2 + 2
    assert re.search(r"mean over samples with its 95% bootstrap interval", text)


def test_the_page_of_regions_shows_what_was_asked(page):
    text = (page.parent / "specific.html").read_text()
    assert text.count("asked: reference mask</figcaption>") == 3
    assert text.count("asked: mask</figcaption>") == 3
    assert Page(text).tags.count("img") == 3 * 4 + 2


def test_one_density_has_one_colour_all_over_a_page(tmp_path):
    def data(spec, sample):  # head 0 uniform, head 1 not
        rng = np.random.default_rng(0)
        query = rng.normal(size=(4, 2, spec.gen, spec.head_dim)) * 3
        query[:, 0] = 0
        return query.astype(spec.dtype), rng.normal(size=(1, 2, spec.ref, spec.head_dim)).astype(spec.dtype)

    run, _ = build(tmp_path / "run.zarr", LAYERS, steps=4, samples=("a", "b"), data=data)
    report = analyze(run, tmp_path / "out", StudyOptions(figures=0)).report
    tiles = Page((report.parent / "head.html").read_text()).pictures
    uniform = palette(MAP_COLOURS)[MAP_COLOURS // 2]
    heads = {"head 0": [], "head 1": []}
    for words, url in tiles:
        heads[words.partition(":")[0].replace("0", "head 0", 1) if words[0] == "0" else "head 1"].append(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))
        )
    assert [len(found) for found in heads.values()] == [2 * 3, 2 * 3]
    assert all((found == uniform).all() for found in heads["head 0"])
    assert not any((found == uniform).all() for found in heads["head 1"])


def test_a_page_without_room_for_all_samples_says_so(page, tmp_path, monkeypatch):
    run, _ = build(tmp_path / "run.zarr", LAYERS, steps=4, samples=("a", "b", "c"), images=True)
    monkeypatch.setattr(thumbnails, "PAGE_BYTES", 200_000)
    report = analyze(run, tmp_path / "out", StudyOptions(figures=0)).report
    text = (report.parent / "time.html").read_text()
    shown = Page(text).tags.count("article")
    assert 0 < shown < 3
    assert f"The first {shown} of 3" in text
    front = Page(report.read_text())
    assert {link for link in front.loads if link.startswith("time.html#")} == {
        f"time.html#s{n}" for n in range(shown)
    }
    assert sum(len(url) for _, url in Page(text).pictures) < 200_000


def test_pages_are_there_for_levels_that_have_maps(tmp_path):
    mixed = [layer("a", gen=(8, 6), ref=(4, 3)), layer("b", heads=3, gen=(8, 6), ref=(4, 3))]
    run, _ = build(tmp_path / "run.zarr", mixed, steps=2)  # no mask, heads that do not match, one sample
    report = analyze(run, tmp_path / "out").report
    names = {path.name for path in report.parent.iterdir()}
    assert names == {"index.html", "time.html", "layer.html"}
    assert {file for file in Page(report.read_text()).loads if file.endswith(".html")} == names
    text = (report.parent / "layer.html").read_text()
    assert "positional bias" not in text
    assert 'id="scores"' not in text
    figures = {path.name for path in (report.parents[1] / "figures").iterdir()}
    assert figures == {"sample-0000.png", "time-0000.png", "layer-0000.png"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spec": layer("p", ref=(0, 0), ref_prefix=1)}, "R2G is a similarity"),
        ({"spec": LAYERS[0], "protocol": "official"}, "values are sums over steps, not densities"),
    ],
)
def test_what_is_no_attention_or_no_density_is_said_on_every_page(tmp_path, options, words):
    run, _ = build(tmp_path / "run.zarr", [options.pop("spec")], steps=2, samples=("a", "b"), images=True)
    report = analyze(run, tmp_path / "out", StudyOptions(**options)).report
    for name in ("time", "head", "layer"):
        text = (report.parent / f"{name}.html").read_text()
        assert words in text
        assert ("similarity, × uniform" in text) == (not options)
    if options:
        assert "1×</b> is what uniform" not in report.read_text()
        assert "× uniform" not in (report.parent / "layer.html").read_text()
        assert "× uniform" not in report.read_text()


def test_mean_maps_are_means_of_what_is_finite(tmp_path):
    maps = np.random.default_rng(0).normal(size=(3, 2, 4, 5)).astype(np.float32)
    maps[1, 0, 2, 2], maps[:, 1, 0, 0] = np.inf, np.nan
    data = xr.DataArray(maps, dims=("sample", "head", "y", "x"), attrs={"kind": "attention"})
    lazy = {("r2g", "head"): data.chunk(sample=1)}
    (found,) = mean_maps(Collected(tmp_path, lazy, ("a", "b", "c"), ())).values()
    expected = maps.astype(np.float64)
    expected[~np.isfinite(expected)] = np.nan
    for place in np.ndindex(2, 4, 5):
        own = [value for value in expected[(slice(None), *place)] if np.isfinite(value)]
        assert found.values[place] == pytest.approx(np.mean(own) if own else np.nan, nan_ok=True)
    assert found.attrs == {"kind": "attention"}
    assert mean_maps(Collected(tmp_path, lazy, ("a",), ())) == {}


def test_colour_bars_and_scores_are_in_units(page):
    text = page.read_text()
    assert text.count('class="ramp"') == 3 * 2
    assert re.search(r"IMACS <b>-?\d\.\d\d</b>; \d+\.\d\d× inside", text)


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_a_real_browser_runs_no_script_of_the_data_and_sorts_the_table(page, tmp_path):
    """The page's own script is followed by a probe that sorts by a number and by the id, and filters."""
    probe = """
      const body = document.querySelector("#table tbody"), filter = document.getElementById("filter");
      const ids = () => [...body.querySelectorAll("tr:not([hidden]) th")].map((th) => th.textContent.trim());
      const numbers = () => [...body.rows].map((row) => Number(row.cells[1].dataset.value));
      const buttons = document.querySelectorAll("#table thead th[data-key] button");
      const images = [...document.images].every((image) => image.complete && image.naturalWidth);
      const found = { title: document.title, buttons: buttons.length, images };
      buttons[2].click(); found.down = numbers(); buttons[2].click(); found.up = numbers();
      buttons[0].click(); found.ids = ids();
      filter.value = "SCRIPT"; filter.dispatchEvent(new Event("input")); found.filtered = ids();
      document.body.innerHTML = ""; document.body.dataset.found = JSON.stringify(found);
    """
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    text = (
        page.read_text().replace("</body>", f"<script>{probe}</script></body>").replace('loading="lazy"', "")
    )
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("script-src ", f"script-src 'sha256-{digest}' "))  # else it would not run
    found = json.loads(browse(probed, tmp_path))
    assert found["title"] == "run.zarr · reference attention"
    assert found["images"] is True
    assert found["buttons"] == 10
    assert found["down"] == sorted(found["down"], reverse=True) != found["up"]
    assert found["up"] == sorted(found["up"])
    assert sorted(found["ids"]) == sorted(HOSTILE)
    assert found["filtered"] == [HOSTILE[0]]


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_a_real_browser_draws_a_tile_as_the_figures_do(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((96, 96), bool)
    mask[20:50, 30:70] = True
    image = rng.integers(0, 255, (96, 96, 3)).astype(np.uint8)
    panel = Panel("a", image, np.exp(rng.normal(size=(6, 6))), mask)
    grid = thumbnails.maps_over_image(block("", [panel]), 4.0, 96, "×")
    page = (
        "<!doctype html><style>{% include 'report.css' %}{% include 'charts.css' %}</style>"
        "{% from 'macros.html.j2' import tiles %}<div style='width: 96px'>{{ tiles(grid) }}</div>"
    )
    (tmp_path / "tile.html").write_text(environment().from_string(page).render(grid=grid))
    chromium(tmp_path / "tile.html", tmp_path, f"screenshot={tmp_path / 'shot.png'}", "window-size=1000,200")
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)[6:102, :96]
    assert np.abs(shot - panel.picture(4.0, 96)).max() <= 12  # 63 colours in a page, 255 in a figure


def browse(path: Path, tmp_path: Path) -> str:
    from html import unescape

    found = chromium(path, tmp_path, "dump-dom", "virtual-time-budget=5000")
    match = re.search(r'data-found="([^"]*)"', found)
    assert match, found[-500:]
    return unescape(match.group(1))


def chromium(path: Path, tmp_path: Path, *more: str) -> str:
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
    flags += ["disable-background-networking", "disable-component-update", "hide-scrollbars", *more]
    command = [
        BROWSER,
        *(f"--{flag}" for flag in flags),
        f"--user-data-dir={tmp_path / 'profile'}",
        path.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=270, check=True).stdout


def agreement(unseen=0):
    """What a commit record says of one layer; `unseen` steps were not witnessed."""
    kernel = "softmax" if unseen < 2 else None
    return {
        "kernel": kernel,
        "steps": 2 - unseen,
        "rows": 8,
        "largest_difference": 3e-7,
        "unwitnessed_steps": unseen,
    }


BOTH = {"a": agreement(), "b": agreement()}


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({"one": {"a": agreement(), "b": agreement()}, "two": BOTH}, None),
        ({"one": {"a": agreement(), "b": agreement(1)}, "two": BOTH}, "b (1 of 2 samples)"),
        ({"one": {"a": agreement(2)}, "two": {"a": agreement(2), "b": agreement()}}, "a, b (1 of 2 samples)"),
        ({}, "a, b."),
    ],
)  # fmt: skip
def test_the_report_names_the_layers_that_are_unwitnessed(tmp_path, seen, words):
    layers = [layer("a", gen=(8, 6), ref=(4, 3)), layer("b", gen=(8, 6), ref=(4, 3))]
    run, _ = build(tmp_path / "run.zarr", layers, steps=2, samples=("one", "two"), witness=seen)
    found = Page(analyze(run, tmp_path / "out", StudyOptions(figures=0)).report.read_text())
    text = " ".join(" ".join(found.words).split())
    if words is None:
        assert "nwitnessed" not in text
        assert "32 rows equal those of softmax within 3.0e-07" in text
        return
    assert f"or not at every step: {words}" in text
    assert {"#unwitnessed"} <= set(found.loads)
    assert "unwitnessed" in found.ids
    # Layers that were not asked for are none of this report's business.
    alone = analyze(run, tmp_path / "alone", StudyOptions(figures=0, layers=("b",), samples=("two",))).report
    assert ("unwitnessed" in Page(alone.read_text()).ids) == (words == "a, b.")
