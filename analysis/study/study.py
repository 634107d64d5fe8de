"""A whole study: marginals, maps, tables, figures and report of a run, or of several as one, in a directory.

::

    OUT/maps.zarr          a group per direction, a variable per level
    OUT/tables/*.parquet   one table per level
    OUT/figures/*.png
    OUT/aggregations.zarr  a group per aggregation, if any was asked for
    OUT/report/*.html      self-contained: index.html, a page for each level, and one for the aggregations
    OUT/study.json         what was done; marks the directory's contents as a study's

It is made in a scratch folder inside OUT and renamed into place at the end; a damaged sample is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from i2am.analysis.aggregations.tables import Aggregated, collect_aggregations
from i2am.analysis.events import Listener, SampleRefused, StudyFinished, ignore
from i2am.analysis.grids.selection import select
from i2am.analysis.maps.stored import Collected
from i2am.analysis.options import StudyOptions, check_options
from i2am.analysis.output_digests import write_mark
from i2am.analysis.output_directory import (
    OutputKind,
    Timings,
    alone_in,
    output_directory,
    remove_partial_chunks,
    retry_without_damaged,
)
from i2am.analysis.scores.summary import summarise
from i2am.analysis.study.baselines import collect_baselines
from i2am.analysis.study.collect import collect_maps, collect_tables
from i2am.analysis.study.damaged_samples import find_damaged, split_damaged
from i2am.analysis.study.up_to_date import earlier_study, is_up_to_date, new_samples, study_inputs
from i2am.storage.errors import NoAnswer
from i2am.storage.reading.one_reference import one_reference, references_of
from i2am.storage.reading.open import open_any
from i2am.storage.reading.run_collection import members_of

if TYPE_CHECKING:
    from i2am.storage.reading.open import Place
    from i2am.storage.reading.run_collection import AnyRun

OUTPUTS = ("maps.zarr", "aggregations.zarr", "tables", "figures", "report", "study.json")
"""Everything that a study writes into its directory; nothing else there is touched."""

STUDY = OutputKind("a study", OUTPUTS, "study.json")


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What a study made."""

    out: Path
    report: Path  # the front page
    maps: Path
    tables: dict[str, pl.DataFrame]
    samples: tuple[str, ...]  # that were studied
    refusals: tuple[SampleRefused, ...]  # damaged samples that were left out
    absent: tuple[str, ...]  # what could not be computed, and why, one line each
    seconds: dict[str, float] = field(default_factory=dict)  # wall clock of each stage
    new: tuple[str, ...] = ()  # samples that the study before in `out` did not have, or had with other data
    up_to_date: bool = False  # the study before still holds, and was left as it is

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "out": str(self.out),
            "report": str(self.report),
            "maps": str(self.maps),
            "tables": {name: f"{self.out}/tables/{name}.parquet" for name in self.tables},
            "samples": list(self.samples),
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "absent": list(self.absent),
            "seconds": self.seconds,
            "new": list(self.new),
            "up_to_date": self.up_to_date,
        }


def analyze(
    run: Place | Sequence[Place],
    out: str | os.PathLike[str],
    options: StudyOptions | None = None,
    *,
    on_event: Listener | None = None,
    overwrite: bool = False,
    again: bool = False,
) -> StudyResult:
    """Study a run, or several, and write everything into a directory; `options` say what.

    A study that lies there and would come out the same is left as it is, unless `again`; another is replaced,
    and what no study wrote only with `overwrite`. `on_event` is called in this process.
    """
    emit = on_event or ignore
    start = time.perf_counter()
    options = options or StudyOptions()
    check_options(options)
    whole = open_any(run, options.storage_options)
    known = references_of(whole)
    chosen = options.reference or known[0]
    opened = one_reference(whole, chosen if len(known) > 1 else options.reference)
    names = select(opened, "r2g", options.layers, options.steps, options.heads, options.samples).samples
    before, inputs = earlier_study(Path(out)), study_inputs(opened, names, options)
    if not again and (found := _reused(inputs, Path(out))) is not None and not find_damaged(opened, names):
        emit(StudyFinished(str(out), time.perf_counter() - start))
        return found
    with output_directory(Path(out), STUDY, overwrite) as place:

        def attempt(damaged: dict[str, str], made: Path) -> StudyResult:
            return _study(opened, names, damaged, options, place.path, made, emit)

        result, made = retry_without_damaged(names, place.staging, attempt)
        fresh = set(new_samples(inputs, before))
        others = (f"{name}: ask for it with reference={name!r}" for name in known if name != chosen)
        result = replace(
            result,
            new=tuple(name for name in result.samples if name in fresh),
            absent=(*result.absent, *others),
        )
        _write_facts(made, opened, result, inputs)
        place.publish(made)
    emit(StudyFinished(str(out), time.perf_counter() - start))
    return result


def _write_facts(made: Path, run: AnyRun, result: StudyResult, inputs: dict[str, Any]) -> None:
    """Write ``study.json``: what was done, and from what."""
    runs = [own.path for own in members_of(run)]
    facts = result.to_json() | {"run": run.path, "runs": runs, "inputs": inputs}
    remove_partial_chunks(made)
    write_mark(made, OUTPUTS, STUDY.mark, facts)


def _reused(inputs: dict[str, Any], out: Path) -> StudyResult | None:
    """The study in a directory, if it would come out the same and every byte of it is what was written."""
    if not (out / STUDY.mark).is_file():
        return None
    with alone_in(out, only_read=True), suppress(OSError, pl.exceptions.PolarsError):
        before = earlier_study(out)
        return _read_result(before, out) if is_up_to_date(inputs, before, out) else None
    return None


def _read_result(facts: dict[str, Any], directory: Path) -> StudyResult:
    """The result of a study that is left as it is."""
    return StudyResult(
        out=directory,
        report=directory / "report" / "index.html",
        maps=directory / "maps.zarr",
        tables={name: pl.read_parquet(directory / "tables" / f"{name}.parquet") for name in facts["tables"]},
        samples=tuple(facts["samples"]),
        refusals=(),
        absent=tuple(facts["absent"]),
        seconds=facts["seconds"],
        up_to_date=True,
    )


def _study(
    run: AnyRun,
    names: Sequence[str],
    known: dict[str, str],
    options: StudyOptions,
    out: Path,
    staging: Path,
    emit: Listener,
) -> StudyResult:
    timings = Timings()
    good, refusals = split_damaged(
        [(run, options.store)], names, known, options.layers, options.storage_options, emit, timings
    )
    collected = collect_maps(run, good, options, staging / "maps.zarr", emit)
    if not collected.maps:
        raise NoAnswer(
            "a study of this run",
            expected="at least one level that can answer",
            got=collected.absent[0] if collected.absent else "no question",
            remedy="select other layers, or use the corrected protocol",
        )
    timings.end("maps")
    tables, absent = _tables(run, collected, options, staging, emit)
    timings.end("tables")
    aggregated = collect_aggregations(
        run, good, options.aggregations, staging, emit,
        layers=options.layers, steps=options.steps, heads=options.heads, size=options.size,
        resize=options.resize, store=options.store, storage_options=options.storage_options,
    )  # fmt: skip
    timings.end("aggregations")
    _draw(run, collected, aggregated, tables, refusals, options, staging, emit, timings)
    return StudyResult(
        out=out,
        report=out / "report" / "index.html",
        maps=out / "maps.zarr",
        tables=tables,
        samples=good,
        refusals=refusals,
        absent=(*collected.absent, *absent, *aggregated.absent),
        seconds=timings.seconds,
    )


def _tables(
    run: AnyRun, collected: Collected, options: StudyOptions, staging: Path, emit: Listener
) -> tuple[dict[str, pl.DataFrame], tuple[str, ...]]:
    """Write the tables of all levels, of the baselines, and the summary; and what has no answer."""
    tables = collect_tables(run, collected, options.penalty, emit)
    baselines, absent = collect_baselines(run, collected.samples, options, staging / "maps.zarr", emit)
    if baselines.height:
        tables["baselines"] = baselines
    tables["summary"] = summarise(tables, options.confidence)
    (staging / "tables").mkdir()
    for name, table in tables.items():
        table.write_parquet(staging / "tables" / f"{name}.parquet")
    return tables, absent


def _draw(
    run: AnyRun,
    collected: Collected,
    aggregated: Aggregated,
    tables: dict[str, pl.DataFrame],
    refusals: tuple[SampleRefused, ...],
    options: StudyOptions,
    staging: Path,
    emit: Listener,
    timings: Timings,
) -> None:
    """Draw the figures, and write the pages of the report."""
    from i2am.analysis.maps.mean_over_samples import mean_maps
    from i2am.analysis.maps.stored import read_eagerly
    from i2am.analysis.report.aggregation_page import PAGE, write_aggregation_page
    from i2am.analysis.report.page_list import page_links
    from i2am.analysis.report.write import write_report
    from i2am.analysis.study.figures import write_figures

    stored = read_eagerly(collected)
    means = mean_maps(stored)
    write_figures(run, stored, tables, means, staging / "figures", options.figures, emit)
    timings.end("figures")
    links = page_links(collected, {PAGE: "Aggregations"} if options.aggregations else {})
    write_report(run, stored, tables, means, staging / "report", links, options.details, refusals, emit)
    write_aggregation_page(aggregated, staging, run.name, emit, links)
    timings.end("report")
