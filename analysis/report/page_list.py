"""The pages of a report: which there are, what each level means, and how they link to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from i2am.analysis.maps.stored import Collected

FRONT = "index.html"


@dataclass(frozen=True, slots=True)
class LevelPage:
    """A page of its own for a level: its file, its name in links, and what the level means."""

    level: str
    file: str
    name: str
    lede: str


_PAGES = (
    LevelPage(
        "time",
        "time.html",
        "Time",
        "When does the reference come in? The denoiser’s steps are split into groups of neighbours; a map is "
        "the mean over the steps of one group, over all heads and layers.",
    ),
    LevelPage(
        "head",
        "head.html",
        "Heads",
        "Which head carries the reference? A map is the mean over all steps and over the head of one number "
        "in every layer; heads of one number in two layers share no more than that number.",
    ),
    LevelPage(
        "layer",
        "layer.html",
        "Layers",
        "Where in the model does the reference act? A map is the mean over the steps and heads of one layer, "
        "brought to the size of the finest grid: coarse layers look smooth because they have few patches.",
    ),
    LevelPage(
        "specific",
        "specific.html",
        "Regions",
        "What did one region do? G2R of chosen generated patches shows which parts of the reference made "
        "them; R2G of chosen reference tokens shows where they went. The region is marked on its image.",
    ),
)

LEVEL_PAGES: Mapping[str, LevelPage] = {page.level: page for page in _PAGES}
"""Level to its page, in the order of the links."""


def page_links(collected: Collected, more: Mapping[str, str]) -> dict[str, str]:
    """File to title of the front page, of each level that has maps, and of further pages (file to title)."""
    found = {level for _, level in collected.maps}
    levels = {page.file: page.name for level, page in LEVEL_PAGES.items() if level in found}
    return {FRONT: "Overview", **levels, **more}
