"""The page of `i2am paper`: each experiment's claim, its numbers beside the paper's, and its pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from i2am.analysis.report.templating import write_page


@dataclass(frozen=True, slots=True)
class TableView:
    """A table of texts, and the file that its numbers come from, relative to the page."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG file and what it shows."""

    path: Path
    words: str

    @property
    def url(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True, slots=True)
class Section:
    """One experiment."""

    name: str  # of its anchor
    title: str
    claim: str  # what the paper says
    verdict: str  # what the numbers here say of it
    ours: Sequence[TableView]
    findings: Sequence[str] = ()  # in words, below the verdict
    papers: TableView | None = None
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Headline:
    """A number in large type."""

    value: str
    words: str
    more: str = ""
    colour: str = "var(--g2r)"


@dataclass(frozen=True, slots=True)
class PaperPage:
    """What the page shows."""

    lede: str
    headlines: Sequence[Headline]
    sections: Sequence[Section]
    provenance: Mapping[str, str] = field(default_factory=dict)


def write_paper_page(folder: Path, page: PaperPage) -> Path:
    """Write ``index.html`` into ``folder``; it needs neither network nor script."""
    values = {
        "title": "I²AM on the embedded model",
        "pages": {},
        "page": page,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    write_page(folder, "index.html", "paper.html.j2", values)
    return folder / "index.html"
