"""`Comparison`: what two runs differ in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import xarray as xr

from i2am.analysis.compare.pairing import Pairing
from i2am.analysis.events import SampleRefused
from i2am.analysis.grids.direction import Direction
from i2am.storage.reading.run_collection import members_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from i2am.storage.reading.run_collection import AnyRun


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs differ in."""

    a: AnyRun
    b: AnyRun
    pairing: Pairing  # samples, layers and levels that were compared
    maps: Mapping[tuple[Direction, str], xr.Dataset]  # by direction and level: `i2am.analysis.compare.maps`
    tables: Mapping[str, pl.DataFrame]  # "scores", "maps", "summary", "map_summary"
    refusals: tuple[SampleRefused, ...]  # samples that are damaged in either run
    absent: tuple[str, ...]  # what is not compared, and why, one line each
    seconds: dict[str, float]  # wall clock of each stage
    out: Path | None = None  # None where nothing was to be written, as for the page below
    report: Path | None = None

    @property
    def names(self) -> tuple[str, str]:
        """What the runs are called: their names, or their paths where those are the same."""
        names = self.a.name.removesuffix(".zarr"), self.b.name.removesuffix(".zarr")
        return names if names[0] != names[1] else (self.a.path, self.b.path)

    @property
    def names_in_words(self) -> str:
        """Which run is A and which is B."""
        return f"A: {self.names[0]}; B: {self.names[1]}"

    def to_json(self) -> dict[str, Any]:
        """Return runs, samples, summaries, refusals, absences, paths and seconds as JSON types."""
        made = self.out is not None
        return {
            "a": [run.path for run in members_of(self.a)],
            "b": [run.path for run in members_of(self.b)],
            "out": str(self.out) if made else None,
            "report": str(self.report) if made else None,
            "maps": f"{self.out}/compare.zarr" if made else None,
            "tables": {name: f"{self.out}/tables/{name}.parquet" for name in self.tables} if made else {},
            "samples": list(self.pairing.samples),
            "alone": {"a": self.pairing.alone[0], "b": self.pairing.alone[1]},
            "summary": _overall(self.tables["summary"]),
            "map_summary": _overall(self.tables["map_summary"]),
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "absent": list(self.absent),
            "seconds": self.seconds,
        }


def _overall(table: pl.DataFrame) -> list[dict[str, Any]]:
    return table.filter(level="unified").drop("level", "label").to_dicts()
