"""The report of a study: HTML pages that need neither network nor script, with all data escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from i2am.analysis.drawing.units import units_of
from i2am.analysis.events import Listener, counter
from i2am.analysis.maps.mean_over_samples import MeanMaps
from i2am.analysis.report.front_page import front_page_values, front_samples
from i2am.analysis.report.level_pages import level_page_values, shown_samples
from i2am.analysis.report.page_list import FRONT, LEVEL_PAGES
from i2am.analysis.report.templating import write_page

if TYPE_CHECKING:
    from i2am.analysis.events import SampleRefused
    from i2am.analysis.maps.stored import Collected
    from i2am.storage.reading.run_collection import AnyRun


def write_report(
    run: AnyRun,
    collected: Collected,
    tables: Mapping[str, pl.DataFrame],
    means: MeanMaps,
    out: Path,
    links: Mapping[str, str],
    details: int,
    refusals: Sequence[SampleRefused],
    emit: Listener,
) -> None:
    """Write ``index.html`` and the pages of the levels into a new directory.

    `links` are all pages (file to title); `details` the samples shown with their pictures, at most.
    """
    out.mkdir()
    levels = [page for page in LEVEL_PAGES.values() if page.file in links]
    counts = {page.file: shown_samples(collected, page.level, details) for page in levels}
    step = counter(emit, "report", front_samples(collected, details) + sum(counts.values()))
    units = units_of(next(iter(collected.maps.values())).attrs)
    fixed = {"title": run.name, "pages": links, "units": units}
    anchored = {page.file: (page.name, counts[page.file]) for page in levels}
    front = front_page_values(run, collected, tables, refusals, details, anchored, step)
    write_page(out, FRONT, "report.html.j2", fixed | front)
    for page in levels:
        content = level_page_values(run, collected, tables, means, page, details, step)
        write_page(out, page.file, "level.html.j2", fixed | {"page": content})
