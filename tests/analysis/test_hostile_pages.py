"""Names, attributes and notes that are HTML, script or worse: every page shows them, and they do nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from i2am.analysis.options import StudyOptions
from i2am.analysis.reduction.aggregation import Aggregation
from i2am.analysis.report.templating import environment
from i2am.analysis.study.study import analyze
from i2am.storage.errors import InputError
from i2am.storage.reading.open import open_run
from tests.analysis.builders import build, damage, layer

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
RUN = "document.title='owned'"
SCRIPT = f"<script>{RUN}</script>"
EVENT = f'"\'><img src=x onerror="{RUN}">'
SAMPLES = (
    SCRIPT,
    EVENT,
    f"javascript:{RUN}",
    "data:text/html,<script>1</script>",
    "</title></style></textarea></svg></table>--><b>",
    "\u202egnp.exe\u2066\u200f",
    "e" + "\u0301" * 20 + " \u0338",
    "{{ 7*7 }}{% raw %}${7*7}&lt;script&gt;",
    "../../../etc/passwd",
)

LAYERS = [
    layer("<script>document.title='owned'<&script>", gen=(8, 6), ref=(4, 3)),
    layer("\"' onmouseover='document.title=1' x='", heads=3, gen=(4, 3), ref=(4, 3)),
]
ATTRS = {
    "model": SCRIPT,
    "<b onclick='document.title=1'>key</b>": "\x1b[2J\u202e" + EVENT,
    "prompt": {"nested": ["</pre></details>" + SCRIPT, "javascript:alert(1)"]},
    "command": EVENT + "\n" + SCRIPT,
}
VOID = {"meta", "img", "input", "br"}
ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "a", "header", "p", "h1", "h2", "h3", "h4", "nav"),
    *("main", "section", "div", "span", "b", "strong", "ul", "li", "dl", "dt", "dd", "details", "summary"),
    *("pre", "code", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img", "article"),
    *("svg", "g", "text", "path", "circle", "label", "input", "output", "script"),
}
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "http-equiv", "class", "href", "id", "style", "title", "scope"),
    *("colspan", "rowspan", "data-key", "data-value", "tabindex", "role", "aria-label", "aria-live", "src"),
    *("alt", "width", "height", "loading", "viewbox", "x", "y", "cx", "cy", "r", "d"),
    *("transform", "hidden", "type", "autocomplete", "aria-current"),
}


class Page(HTMLParser):
    """Elements, attributes and text; fails where an element is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.elements, self.attributes, self.words, self.scripts = [], set(), [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.words).append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data[:80]}")


def _chunk(attention):
    return attention.probabilities("g2r").mean((-2, -1))


HOSTILE = Aggregation("hostile-1", _chunk, units=EVENT, title=SCRIPT)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study of everything that can be named by somebody else, with one damaged sample."""
    place = tmp_path_factory.mktemp("hostile")
    names = (*SAMPLES, "<i>damaged</i>")
    run, _ = build(place / "run.zarr", LAYERS, steps=2, samples=names, images=True, attrs=ATTRS)
    damage(place / "run.zarr", names.index("<i>damaged</i>"))
    options = StudyOptions(details=9, figures=3, aggregations=("entropy", f"{__name__}:HOSTILE"))
    analyze(open_run(run.path), place / "out", options)
    return place / "out"


def pages(study: Path) -> list[Path]:
    found = sorted(study.rglob("*.html"))
    assert {"index.html", "time.html", "layer.html", "aggregations.html"} <= {path.name for path in found}
    return found


def test_no_page_has_an_element_or_attribute_that_the_templates_do_not_make(study):
    own = environment().globals["script"]
    for path in pages(study):
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        assert page.elements <= ELEMENTS, path.name
        assert {name for _, name, _ in page.attributes} <= ATTRIBUTES, path.name
        for _, name, value in page.attributes:
            if name in ("href", "src"):
                assert re.fullmatch(r"[a-z]+\.html(#s\d+)?|#[\w.-]+|data:image/png;base64,[\w+/=]+", value), (
                    value
                )
            if name == "style":
                assert "<" not in value
                assert not re.search("url\\((?!data:image/png;base64,)|expression|@import|javascript", value)
        assert page.scripts == ([own] if path.name == "index.html" else [])
        assert page.elements.isdisjoint({"iframe", "object", "embed", "base", "form", "link"})
        # nothing that turns the direction of the text around it, and no control character
        assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)


def test_what_was_named_is_shown_and_not_lost(study):
    words = "".join(Page((study / "report" / "index.html").read_text(encoding="utf-8")).words)
    for sample in (*SAMPLES[:5], *SAMPLES[6:], "<i>damaged</i>"):
        assert sample in words
    assert "\ufffdgnp.exe\ufffd\ufffd" in words
    assert "49" + "${" not in words
    assert LAYERS[0].name in words
    assert "<b onclick" in words
    more = "".join(Page((study / "report" / "aggregations.html").read_text(encoding="utf-8")).words)
    assert SCRIPT in more
    assert EVENT in more


def test_no_name_leaves_the_output_folder(study):
    found = [
        path.relative_to(study) for path in study.rglob("*") if path.is_file() and ".zarr" not in str(path)
    ]
    assert len([path for path in found if path.parts[0] == "figures"]) > 12
    assert all(re.fullmatch(r"(tables|figures|report)/[\w.-]+|[\w.-]+", path.as_posix()) for path in found), (
        found
    )
    assert not list(study.rglob("*passwd*"))
    assert {path.name for path in study.parent.iterdir()} <= {"run.zarr", "out", "run.marginals.zarr"}, list(
        study.parent.iterdir()
    )


@pytest.mark.parametrize("name", ["../x", "a/b", "<b>", "a\n", "a\0", ".hidden", "x" * 101, "\u202ea", ""])
def test_an_aggregation_whose_name_is_no_file_name_is_refused(name):
    with pytest.raises(InputError, match="name; expected letters, digits"):
        Aggregation(name, _chunk)


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_a_real_browser_runs_nothing_of_them(study, tmp_path):
    """The payload is shown to work first: without escaping it changes the page."""
    live = tmp_path / "live.html"
    for payload in (SCRIPT, EVENT):
        live.write_text(f"<!doctype html><title>fine</title><body>{payload}", encoding="utf-8")
        assert "<title>owned</title>" in dom(live, tmp_path)
    for path in pages(study):
        found = dom(path, tmp_path)
        assert re.search(r"<title>run\.zarr · [\w ]+</title>", found)
        assert found.count("<script") == (1 if path.name == "index.html" else 0)
    # its own script did run on the front page: headings became buttons
    assert dom(study / "report" / "index.html", tmp_path).count("<button") > 2


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_a_real_browser_runs_no_script_even_where_escaping_would_fail(study, tmp_path):
    """The policy names the one script of the report by its digest."""
    text = (study / "report" / "index.html").read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("<main", f"{SCRIPT}{EVENT}<main", 1), encoding="utf-8")
    found = dom(broken, tmp_path)
    assert "<title>owned" not in found
    assert found.count("<button") > 2


def dom(path: Path, tmp_path: Path) -> str:
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
    flags += ["disable-background-networking", "disable-component-update", "dump-dom"]
    flags += ["virtual-time-budget=3000", f"user-data-dir={tmp_path / 'profile'}"]
    command = [BROWSER, *(f"--{flag}" for flag in flags), path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=270, check=True).stdout
