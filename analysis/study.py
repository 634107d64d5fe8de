"""A whole study of one run: marginals, maps, tables, figures and report, in one directory.

::

    OUT/maps.zarr          a group per direction, a variable per level
    OUT/tables/*.parquet   one table per level
    OUT/figures/*.png
    OUT/aggregations.zarr  a group per aggregation, if any was asked for
    OUT/report/*.html      self-contained: index.html, a page for each level, and one for the aggregations
    OUT/study.json         what was done; marks the directory's contents as a study's

Everything is made in a temporary directory inside OUT and renamed into place at the end, so that a study
that fails leaves the one before it as it was. A damaged sample is refused and reported; the others are
studied.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from analysis.aggregation_tables import Aggregated, collect_aggregations
from analysis.baselines import collect_baselines
from analysis.bootstrap import CONFIDENCE, check_confidence
from analysis.cache import StorePlace
from analysis.collect import Collected, collect_maps, collect_tables
from analysis.events import Listener, SampleRefused, StageStarted, StudyFinished, ignore
from analysis.fill import fill_marginals
from analysis.imacs import check_penalty
from analysis.outputs import drop_half_written, into_place, refuse_inside_run, workplace
from analysis.question import PROTOCOLS, Protocol
from analysis.selection import Indices, select
from analysis.summary import summarise
from analysis.unchanged import earlier, made_from, new_samples, still_holds
from storage.errors import (
    AlreadyExists,
    DamagedSample,
    DamageError,
    NoAnswer,
    NoPermission,
    NotFound,
    UnknownName,
)

if TYPE_CHECKING:
    from storage import Run

OUTPUTS = ("maps.zarr", "aggregations.zarr", "tables", "figures", "report", "study.json")
"""Everything that a study writes into its directory; nothing else there is touched. The last is the mark."""

WORKPLACE = ".study-"
"""Begins the name of the folder in which a study is made."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A sample that was left out.

    Attributes
    ----------
    sample
        Its id.
    reason
        The error's one line, which names the sample and the layer.
    """

    sample: str
    reason: str


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """What to study and how.

    Attributes
    ----------
    layers, steps, heads, samples
        Selections, as for `attribution_maps`; None for all.
    time_groups
        Groups of the time level, at most; fewer if there are fewer steps.
    penalty
        IMACS's weight of what lies outside the mask.
    protocol
        "corrected" or "official", of the maps and of IMACS.
    confidence
        Of the intervals over samples.
    size
        (rows, columns) of the maps; None for the largest grid.
    aggregations
        Names or "module:name" of aggregations.
    details
        Samples shown in full in the report; all are in its table.
    figures
        Samples that get a figure of their own.
    store
        Place of the derived store of marginals; None for beside the run, False to keep nothing.
    storage_options
        For fsspec, where the run or the derived store is a URL.
    """

    layers: tuple[str, ...] | None = None
    steps: Indices | None = None
    heads: Indices | None = None
    samples: tuple[str, ...] | None = None
    time_groups: int = 5
    penalty: float = 3.0
    protocol: Protocol = "corrected"
    confidence: float = CONFIDENCE
    size: tuple[int, int] | None = None
    aggregations: tuple[str, ...] = ()
    details: int = 24
    figures: int = 12
    store: StorePlace = None
    storage_options: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What a study made.

    Attributes
    ----------
    out, report, maps
        Directory, report page and maps store.
    tables
        Table name to frame.
    samples
        Ids that were studied.
    refusals
        Damaged samples that were left out; the command line exits with 1 if there are any.
    absent
        What could not be computed, and why, one line each.
    seconds
        Wall clock of each stage.
    new
        Ids among `samples` that the study before this one in `out` did not have, or had with other data.
    up_to_date
        The study before this one still holds, and was left as it is.
    """

    out: Path
    report: Path
    maps: Path
    tables: dict[str, pl.DataFrame]
    samples: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    absent: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    up_to_date: bool = False

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


def analyse(
    run: Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: StudyOptions | None = None,
    *,
    on_event: Listener | None = None,
    overwrite: bool = False,
    again: bool = False,
) -> StudyResult:
    """Study a run and write everything into a directory.

    A study that lies there and would come out the same (same samples, options and versions) is left as it is.

    Parameters
    ----------
    run
        An open run, or its path or URL.
    out
        A local directory; made if absent. A study that lies there is replaced; other contents are left alone.
    options
        What to study.
    on_event
        Called with the events of `analysis.events`, in this process.
    overwrite
        Replace things of the names in OUTPUTS that no study wrote.
    again
        Make it anew even if it would come out the same.

    Returns
    -------
    StudyResult
        Paths, tables and refusals.

    Raises
    ------
    AlreadyExists
        If `out` holds something under one of the names in OUTPUTS that no study wrote.
    NoPermission, NotFound
        If `out` cannot be made.
    EmptyRun, UnknownName
        From the run and the selection.
    DamagedSample
        If no sample is left that is not damaged.
    """
    from storage import open_run

    tell = on_event or ignore
    begun = time.perf_counter()
    options = options or StudyOptions()
    _check_options(options)
    opened = open_run(run, options.storage_options) if isinstance(run, (str, os.PathLike)) else run
    names = select(opened, "r2g", options.layers, options.steps, options.heads, options.samples).samples
    directory = _directory(Path(out), overwrite)
    before, inputs = earlier(directory), made_from(opened, names, options)
    if not again and still_holds(inputs, before, directory) and not _check(opened, names):
        tell(StudyFinished(str(directory), time.perf_counter() - begun))
        return _as_it_was(before, directory)
    with workplace(directory, WORKPLACE) as staging:
        result, made = _without_damaged(opened, names, options, directory, staging, tell)
        fresh = set(new_samples(inputs, before))
        result = replace(result, new=tuple(name for name in result.samples if name in fresh))
        facts = result.to_json() | {"run": str(opened.path), "inputs": inputs}
        (made / "study.json").write_text(json.dumps(facts, indent=2) + "\n")
        drop_half_written(made)
        _into_place(made, directory)
    tell(StudyFinished(str(directory), time.perf_counter() - begun))
    return result


def _as_it_was(facts: dict[str, Any], directory: Path) -> StudyResult:
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


def _check_options(options: StudyOptions) -> None:
    """Refuse what would fail only after the marginals pass."""
    check_confidence(options.confidence)
    check_penalty(options.penalty)
    if options.protocol not in PROTOCOLS:
        raise UnknownName("protocol", options.protocol, PROTOCOLS)


def _without_damaged(
    run: Run, names: Sequence[str], options: StudyOptions, out: Path, staging: Path, tell: Listener
) -> tuple[StudyResult, Path]:
    """Study; a sample that turns out damaged only when its attention is read again is left out too.

    Each attempt has a folder of its own: tasks of the one before may still be writing.
    """
    damaged: dict[str, str] = {}
    while True:
        made = staging / f"attempt-{len(damaged)}"
        made.mkdir()
        try:
            return _study(run, names, damaged, options, out, made, tell), made
        except DamagedSample as error:
            if error.sample in damaged or error.sample not in names or len(damaged) + 1 == len(names):
                raise
            damaged[error.sample] = str(error)


def _into_place(staging: Path, directory: Path) -> None:
    """Replace the study before this one; what only that one had goes with it.

    The mark goes first and comes last: a process killed in between leaves no study, but its workplace.
    """
    if (directory / OUTPUTS[-1]).exists():
        os.replace(directory / OUTPUTS[-1], staging / f"old-{OUTPUTS[-1]}")
    for name in OUTPUTS:
        if (staging / name).exists():
            into_place(staging / name, directory / name)
        elif (directory / name).exists():
            os.replace(directory / name, staging / f"old-{name}")


def _directory(out: Path, overwrite: bool) -> Path:
    """Make the output directory, or check that nothing but a study would be replaced in it."""
    refuse_inside_run(out)
    if out.exists() and not out.is_dir():
        raise AlreadyExists(
            f"{out} is a file", expected="a directory, or nothing", remedy="name another --out"
        )
    taken = [name for name in OUTPUTS if (out / name).exists()]
    ours = (out / OUTPUTS[-1]).is_file() or any(out.glob(f"{WORKPLACE}*"))  # of one that was killed
    if taken and not ours and not overwrite:
        raise AlreadyExists(
            f"{out / taken[0]} exists and was not written by a study",
            remedy="name another directory, or allow overwriting",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = tempfile.mkdtemp(prefix=WORKPLACE, dir=out)
    except PermissionError as error:
        raise NoPermission(
            f"cannot write into {out}", got=str(error), remedy="name another directory"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"cannot make {out}", got=str(error), remedy="name another directory") from error
    os.rmdir(probe)
    return out


def _study(
    run: Run,
    names: Sequence[str],
    known: dict[str, str],
    options: StudyOptions,
    out: Path,
    staging: Path,
    tell: Listener,
) -> StudyResult:
    laps = _Laps()
    tell(StageStarted("check", len(names)))
    damaged = known | _check(run, [name for name in names if name not in known])
    laps.end("check")
    damaged |= fill_marginals(run, [name for name in names if name not in damaged], options, tell)
    laps.end("marginals")
    for sample, reason in damaged.items():
        tell(SampleRefused(sample, reason))
    good = tuple(name for name in names if name not in damaged)
    if not good:
        raise _all_damaged(damaged)
    refusals = tuple(Refusal(sample, reason) for sample, reason in damaged.items())
    collected = collect_maps(run, good, options, staging / "maps.zarr", tell)
    if not collected.maps:
        raise NoAnswer(
            "a study of this run",
            expected="at least one level that can answer",
            got=collected.absent[0] if collected.absent else "no question",
            remedy="select other layers, or use the corrected protocol",
        )
    laps.end("maps")
    tables, absent = _tables(run, collected, options, staging, tell)
    laps.end("tables")
    aggregated = collect_aggregations(run, good, options, staging, tell)
    laps.end("aggregations")
    _draw(run, collected, aggregated, tables, refusals, options, staging, tell, laps)
    return StudyResult(
        out=out,
        report=out / "report" / "index.html",
        maps=out / "maps.zarr",
        tables=tables,
        samples=good,
        refusals=refusals,
        absent=(*collected.absent, *absent, *aggregated.absent),
        seconds=laps.seconds,
    )


class _Laps:
    """Wall clock of each stage, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.perf_counter()

    def end(self, stage: str) -> None:
        """Note the time since the last stage ended."""
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._mark, 3)
        self._mark = now


def _tables(
    run: Run, collected: Collected, options: StudyOptions, staging: Path, tell: Listener
) -> tuple[dict[str, pl.DataFrame], tuple[str, ...]]:
    """Write the tables of all levels, of the baselines, and the summary; and what has no answer."""
    tables = collect_tables(run, collected, options, tell)
    baselines = collect_baselines(run, collected.samples, options, staging / "maps.zarr", tell)
    if baselines.table.height:
        tables["baselines"] = baselines.table
    tables["summary"] = summarise(tables, options.confidence)
    (staging / "tables").mkdir()
    for name, table in tables.items():
        table.write_parquet(staging / "tables" / f"{name}.parquet")
    return tables, baselines.absent


def _draw(
    run: Run,
    collected: Collected,
    aggregated: Aggregated,
    tables: dict[str, pl.DataFrame],
    refusals: tuple[Refusal, ...],
    options: StudyOptions,
    staging: Path,
    tell: Listener,
    laps: _Laps,
) -> None:
    """Draw the figures, and write the pages of the report."""
    from analysis.aggregation_page import PAGE, write_aggregation_page
    from analysis.direct import direct
    from analysis.means import mean_maps
    from analysis.report import write_report
    from analysis.site import site
    from analysis.study_figures import write_figures

    means = mean_maps(direct(collected))
    write_figures(run, collected, tables, staging / "figures", options.figures, tell, means)
    laps.end("figures")
    pages = {PAGE: "Aggregations"} if options.aggregations else {}
    write_report(
        run,
        collected,
        tables,
        staging / "report",
        refusals=refusals,
        details=options.details,
        pages=pages,
        means=means,
        on_event=tell,
    )
    write_aggregation_page(aggregated, staging, Path(str(run.path)).name, tell, site(collected, pages))
    laps.end("report")


def _check(run: Run, names: Sequence[str]) -> dict[str, str]:
    """Cheap look at every sample: {damaged sample: reason}."""
    damaged: dict[str, str] = {}
    for name in names:
        try:
            run.check(name)
        except DamageError as error:
            damaged[name] = str(error)
    return damaged


def _all_damaged(damaged: dict[str, str]) -> DamagedSample:
    sample, reason = next(iter(damaged.items()))
    return DamagedSample(sample, None, f"and so is every other sample asked for ({len(damaged)}): {reason}")
