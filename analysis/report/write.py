"""The report of a study: HTML pages that need nothing else, neither network nor script.

A front page, and one for each level that has maps. Script only adds sorting and filtering to the front page.
Everything that comes from data is escaped by the template engine; a content security policy in each page
forbids it to load anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from i2am.analysis.drawing.units import units_of
from i2am.analysis.events import Listener, StageAdvanced, StageStarted, ignore
from i2am.analysis.maps.mean_over_samples import MeanMaps, mean_maps
from i2am.analysis.maps.stored import read_eagerly
from i2am.analysis.report.front_page import front_content, front_samples
from i2am.analysis.report.level_pages import page_content, shown_samples
from i2am.analysis.report.page_list import FRONT, LEVEL_PAGES, site
from i2am.analysis.report.templating import environment

if TYPE_CHECKING:
    from i2am.analysis.events import Refusal
    from i2am.analysis.maps.stored import Collected
    from i2am.storage.reading.run_collection import AnyRun


def write_report(
    run: AnyRun,
    collected: Collected,
    tables: Mapping[str, pl.DataFrame],
    out: Path,
    *,
    refusals: Sequence[Refusal] = (),
    details: int = 24,
    pages: Mapping[str, str] | None = None,
    means: MeanMaps | None = None,
    on_event: Listener | None = None,
) -> Path:
    """Write ``index.html`` and a page for each level that has maps.

    Parameters
    ----------
    run, collected, tables
        What a study found.
    out
        Directory; made if absent.
    refusals
        Samples that were left out, and why.
    details
        Samples shown with their pictures, at most; all are in the front page's table.
    pages
        Other pages of the report: file name to title.
    means
        Mean maps over samples; computed if not given.
    on_event
        Told after each sample of each page.

    Returns
    -------
    Path
        The front page.
    """
    emit = on_event or ignore
    out.mkdir(parents=True, exist_ok=True)
    collected = read_eagerly(collected)
    averages = mean_maps(collected) if means is None else means
    links = site(collected, pages or {})
    levels = [page for page in LEVEL_PAGES.values() if page.file in links]
    counts = {page.file: shown_samples(collected, page.level, details) for page in levels}
    step = _Steps(emit, front_samples(collected, details) + sum(counts.values()))
    fixed = {
        "title": run.name,
        "pages": links,
        "units": units_of(next(iter(collected.maps.values())).attrs),
    }
    anchored = {page.file: (page.name, counts[page.file]) for page in levels}
    front = front_content(run, collected, tables, refusals, details, anchored, step)
    _write(out, FRONT, "report.html.j2", fixed | front)
    for page in levels:
        content = page_content(run, collected, tables, averages, page, details, step)
        _write(out, page.file, "level.html.j2", fixed | {"page": content})
    return out / FRONT


class _Steps:
    """Counts samples and tells."""

    def __init__(self, emit: Listener, total: int) -> None:
        self.emit, self.total, self.done = emit, total, 0
        emit(StageStarted("report", total))

    def __call__(self) -> None:
        self.done += 1
        self.emit(StageAdvanced("report", self.done, self.total))


def _write(out: Path, file: str, template: str, values: dict[str, Any]) -> None:
    page = environment().get_template(template).render(here=file, **values)
    (out / file).write_text(page, encoding="utf-8")
