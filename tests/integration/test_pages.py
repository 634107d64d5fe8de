"""The pages name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "storage/FORMAT.md", "analysis/METHODS.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
TOP = "(?:i2am|storage|pipeline|analysis|flows|tests|benchmarks|examples|docs)"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(rf"`({TOP}/[\w./-]*\w)/?`", text))
    linked = {link.partition("#")[0] for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text)}
    missing = {name for name in named if not (ROOT / name).exists()}
    missing |= {link for link in linked if link and not (ROOT / page).parent.joinpath(link).exists()}
    assert not missing


def test_the_walk_covers_both_ways() -> None:
    """The table of the captured tensor ends at the commit record, that of the question at a picture."""
    walk = (ROOT / "CONTRIBUTING.md").read_text().partition("## A walk")[2].partition("## Style")[0]
    steps = re.findall(r"^\| `([\w/]+\.py)`", walk, re.MULTILINE)
    assert steps[0] == "pipeline/capture.py"
    assert "storage/format/commit_record.py" in steps
    assert "analysis/maps/attribution.py" in steps
    assert steps[-1] == "analysis/drawing/sheet.py"
