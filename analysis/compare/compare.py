"""Two runs compared: two models, or one before and after a change, sample by sample.

::

    OUT/compare.zarr       a group per direction and level: mean maps of A and B, their difference, intervals
    OUT/tables/*.parquet   scores, maps (each pair), summary, map_summary (over pairs)
    OUT/figures/*.png
    OUT/report/index.html  self-contained
    OUT/compare.json       what was compared; marks the directory's contents as a comparison's

Samples are paired by id; every difference is B - A within pairs. A damaged sample is left out and named.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import polars as pl

from i2am.analysis.compare.maps import PairedMaps, collect_pairs, paired_maps
from i2am.analysis.compare.pairing import Pairing, pair
from i2am.analysis.compare.result import Comparison
from i2am.analysis.compare.scores import paired_scores, summarise_pairs, summarise_scores
from i2am.analysis.events import Listener, StudyFinished, counter, ignore
from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.resize import Grid, Resize
from i2am.analysis.maps.question import Protocol
from i2am.analysis.marginals.store import StorePlace, store_for
from i2am.analysis.options import StudyOptions, check_options
from i2am.analysis.output_digests import write_mark
from i2am.analysis.output_directory import (
    OutputKind,
    Timings,
    output_directory,
    remove_partial_chunks,
    retry_without_damaged,
)
from i2am.analysis.study.collect import collect_tables
from i2am.analysis.study.damaged_samples import split_damaged
from i2am.storage.errors import NoAnswer
from i2am.storage.index_selection import Indices
from i2am.storage.reading.one_reference import one_reference, references_of
from i2am.storage.reading.open import open_any

if TYPE_CHECKING:
    from i2am.storage.reading.open import Place
    from i2am.storage.reading.run_collection import AnyRun

OUTPUTS = ("compare.zarr", "tables", "figures", "report", "compare.json")
"""Everything that a comparison writes into its directory; nothing else there is touched."""

DETAILS = 6
"""Pairs that are drawn, unless told otherwise."""

COMPARISON = OutputKind("a comparison", OUTPUTS, "compare.json")


class CompareOptions(TypedDict, total=False):
    """What to compare, and how: as for `i2am.analysis.options.StudyOptions`, and of both runs.

    `details` counts the pairs that are drawn, those that differ most; `store` as a path is a folder for the
    derived stores of all runs.
    """

    layers: Sequence[str] | None
    steps: Indices | None
    heads: Indices | None
    samples: Sequence[str] | None
    reference: str | None
    size: Grid | None
    resize: Resize
    time_groups: int
    penalty: float
    protocol: Protocol
    confidence: float
    details: int
    store: StorePlace
    storage_options: dict[str, Any] | None


def compare(
    a: Place | Sequence[Place],
    b: Place | Sequence[Place],
    out: str | os.PathLike[str] | None = None,
    *,
    on_event: Listener | None = None,
    overwrite: bool = False,
    **options: Unpack[CompareOptions],
) -> Comparison:
    """Compare two runs, pair by pair of their common samples.

    Parameters
    ----------
    a, b
        An open run, or its path or URL; or several, or a pattern, as `i2am.open_runs` takes them.
    out
        A local directory; made if absent. A comparison that lies there is replaced; other contents are left
        alone. None writes nothing but marginals.
    on_event
        Called with the events of `i2am.analysis.events`, in this process.
    overwrite
        Replace things of the names in OUTPUTS that no comparison wrote.
    **options
        layers, steps, heads, samples, reference, size, resize="linear", time_groups=5, penalty=3.0,
        protocol="corrected", confidence=0.95, details=6, store, storage_options: see `CompareOptions`.

    Returns
    -------
    Comparison
        Mean maps, differences, intervals and tables.

    Raises
    ------
    NoAnswer
        If the runs have no sample or no layer in common.
    AlreadyExists, NoPermission, NotFound, UnknownName, InputError, EmptyRun
        From `out`, the runs and the selections; of runs whose grids differ in aspect, if no size is given.
    DamagedSample
        If every common sample is damaged in one run or the other.
    """
    start = time.perf_counter()
    job = _Job.of(a, b, on_event or ignore, options)
    pairing = pair(job.a, job.b, job.options)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="i2am-compare-") as staging:
            return retry_without_damaged(pairing.samples, Path(staging), partial(job.compare, pairing))[0]
    with output_directory(Path(out), COMPARISON, overwrite) as place:

        def attempt(damaged: dict[str, str], made: Path) -> Comparison:
            return job.write(job.compare(pairing, damaged, made), place.path, made)

        found, made = retry_without_damaged(pairing.samples, place.staging, attempt)
        place.publish(made)
    job.emit(StudyFinished(str(place.path), time.perf_counter() - start))
    return found


@dataclass(frozen=True, slots=True)
class _Job:
    a: AnyRun
    b: AnyRun
    options: StudyOptions
    emit: Listener

    @classmethod
    def of(
        cls, a: Place | Sequence[Place], b: Place | Sequence[Place], emit: Listener, given: CompareOptions
    ) -> _Job:
        """Check the options and open the runs."""
        asked: dict[str, Any] = {"details": DETAILS, **given}
        for name in ("layers", "samples"):
            if (names := asked.get(name)) is not None:
                asked[name] = (names,) if isinstance(names, str) else tuple(names)
        options = StudyOptions(**asked)
        check_options(options)
        opened = [open_any(run, options.storage_options) for run in (a, b)]
        reference = options.reference or references_of(opened[0])[0]
        first, second = (one_reference(run, reference) for run in opened)
        return cls(first, second, options, emit)

    def compare(self, pairing: Pairing, known: dict[str, str], made: Path) -> Comparison:
        """Compare the undamaged samples; `known` are damaged, and `made` is a folder for the work."""
        timings = Timings()
        stores = [(run, store_for(run, self.options.store)) for run in (self.a, self.b)]
        good, refusals = split_damaged(
            stores,
            pairing.samples,
            known,
            pairing.every_layer,
            self.options.storage_options,
            self.emit,
            timings,
        )
        pairing = replace(pairing, samples=good)
        maps = collect_pairs(self.a, self.b, pairing, self.options, made, self.emit)
        if not maps[0].maps:
            raise NoAnswer(
                f"a comparison of {self.a.path} and {self.b.path}",
                expected="at least one level that both can answer",
                got=maps[0].absent[0],
                remedy="select other layers, or use the corrected protocol",
            )
        timings.end("maps")
        scores = paired_scores(
            *(
                collect_tables(run, collected, self.options.penalty, self.emit)
                for run, collected in zip((self.a, self.b), maps, strict=True)
            )
        )
        timings.end("tables")
        found: dict[tuple[Direction, str], PairedMaps] = {}
        step = counter(self.emit, "pairs", len(maps[0].maps))
        for key in maps[0].maps:
            found[key] = paired_maps(maps[0].maps[key], maps[1].maps[key], made, self.options.confidence)
            step()
        timings.end("pairs")
        return Comparison(
            a=self.a,
            b=self.b,
            pairing=pairing,
            maps={key: each.maps for key, each in found.items()},
            tables=self._tables(scores, list(found.values())),
            refusals=refusals,
            absent=(*pairing.absent, *maps[0].absent, *_caveats(scores, len(good))),
            seconds=timings.seconds,
        )

    def _tables(self, scores: pl.DataFrame, found: Sequence[PairedMaps]) -> dict[str, pl.DataFrame]:
        pairs = pl.concat([each.pairs for each in found])
        excluding = {key: share for each in found for key, share in each.excluding().items()}
        return {
            "scores": scores,
            "maps": pairs,
            "summary": summarise_scores(scores, self.options.confidence),
            "map_summary": summarise_pairs(pairs, excluding, self.options.confidence),
        }

    def write(self, found: Comparison, directory: Path, made: Path) -> Comparison:
        """Write a comparison into `made`, as it will be in `directory`."""
        from i2am.analysis.compare.figures import write_compare_figures
        from i2am.analysis.compare.page import write_compare_page

        found = replace(found, out=directory, report=directory / "report" / "index.html")
        for (direction, level), maps in found.maps.items():
            group = f"{direction}/{level}"
            maps.to_zarr(made / "compare.zarr", group=group, mode="a", zarr_format=3, consolidated=False)
        (made / "tables").mkdir()
        for name, table in found.tables.items():
            table.write_parquet(made / "tables" / f"{name}.parquet")
        stores = made / "a.zarr", made / "b.zarr"
        details = self.options.details
        write_compare_figures(found, stores, made / "figures", details, self.emit)
        write_compare_page(found, stores, made / "report", details, self.emit)
        remove_partial_chunks(made)
        write_mark(made, OUTPUTS, COMPARISON.mark, found.to_json())
        return found


def _caveats(scores: pl.DataFrame, pairs: int) -> list[str]:
    """What makes the numbers less than they seem, one line each."""
    lines = []
    if pairs < 2:
        lines.append("intervals: they need at least two pairs of samples, and there is one")
    for row in scores.filter(level="unified").unique("direction", maintain_order=True).iter_rows(named=True):
        way = row["direction"].upper()
        if row["kind_a"] != row["kind_b"]:
            lines.append(f"{way} is {row['kind_a']} in A and {row['kind_b']} in B: two kinds of number")
        for which in "ab":
            notes = scores.filter(direction=row["direction"], level="unified")[f"note_{which}"]
            if notes.count():
                what = f"scores of {way} in {which.upper()}"
                lines.append(f"{what}: none for {notes.count()} of {pairs} pairs; {notes.drop_nulls()[0]}")
    return lines
