from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.charts import nice_ticks
from analysis.study import StudyOptions, analyse
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
    """Tags, links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.ids, self.anchors, self.words = [], [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.loads += [found[name] for name in ("src", "href", "data", "srcset") if found.get(name)]
        self.ids |= {found["id"]} if "id" in found else set()
        self.anchors += [found["href"][1:] for _ in [0] if found.get("href", "").startswith("#")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    attrs = {"model": "</title><script>alert(1)</script>", "software": {"torch": "<b>2</b>"}}
    run, _ = build(place / "run.zarr", LAYERS, steps=4, samples=HOSTILE, images=True, attrs=attrs)
    return analyse(run, place / "out", StudyOptions(details=3)).report


def test_the_page_needs_nothing_else(page):
    found = Page(page.read_text())
    assert found.loads
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in found.loads)
    assert not re.search(r"@import|url\(|https?://", page.read_text())


def test_everything_from_data_is_escaped(page):
    found = Page(page.read_text())
    assert found.tags.count("script") == 1
    assert found.tags.count("title") - 1 == page.read_text().count("<title>") - 1
    text = " ".join(found.words)
    for sample in HOSTILE:
        assert sample in text
    assert "49 &" not in text
    assert not re.search(r"<img src=x", page.read_text())


def test_details_are_bounded_links_resolve_and_every_sample_is_in_the_table(page):
    found = Page(page.read_text())
    assert found.tags.count("article") == 3
    assert set(found.anchors) <= found.ids
    assert "first 3 of 4" in page.read_text()
    assert found.tags.count("img") == 3 * 7


def test_colour_bars_and_scores_are_in_units(page):
    text = page.read_text()
    assert text.count('class="ramp"') == 3 * 2
    assert re.search(r"IMACS <b>-?\d\.\d\d</b>; \d+\.\d\d× inside", text)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 1.0), (0.97, 1.02), (1.0, 1.0), (0, 640)])
def test_ticks_cover_the_values_in_few_round_steps(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 1 <= len(ticks) <= 9


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_a_real_browser_runs_no_script_of_the_data_and_sorts_the_table(page, tmp_path):
    """The page's own script is followed by a probe that sorts by a number and by the id, and filters."""
    probe = """<script>
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
    </script></body>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", probe).replace('loading="lazy"', ""))
    found = json.loads(browse(probed, tmp_path))
    assert found["title"] == "run.zarr · reference attention"
    assert found["images"] is True
    assert found["buttons"] == 10
    assert found["down"] == sorted(found["down"], reverse=True) != found["up"]
    assert found["up"] == sorted(found["up"])
    assert sorted(found["ids"]) == sorted(HOSTILE)
    assert found["filtered"] == [HOSTILE[0]]


def browse(path: Path, tmp_path: Path) -> str:
    flags = [
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-sync",
        "dump-dom",
    ]
    flags += ["disable-background-networking", "disable-component-update", "virtual-time-budget=5000"]
    command = [
        BROWSER,
        *(f"--{flag}" for flag in flags),
        f"--user-data-dir={tmp_path / 'profile'}",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=270, check=True)
    from html import unescape

    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stdout[-500:]
    return unescape(match.group(1))
