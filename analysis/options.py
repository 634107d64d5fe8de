"""What a study is asked to do, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from i2am.analysis.grids.resize import Resize, check_resize
from i2am.analysis.maps.question import PROTOCOLS, Protocol
from i2am.analysis.marginals.store import StorePlace
from i2am.analysis.scores.bootstrap import CONFIDENCE, check_confidence
from i2am.analysis.scores.imacs import check_penalty
from i2am.storage.errors import UnknownName
from i2am.storage.index_selection import Indices


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """What to study and how."""

    # Selections, as for `attribution_maps`; None for all.
    layers: tuple[str, ...] | None = None
    steps: Indices | None = None
    heads: Indices | None = None
    samples: tuple[str, ...] | None = None
    reference: str | None = None  # of several: "reference", "reference-1", ..., or "text"; None: the first
    time_groups: int = 5  # groups of the time level, at most; fewer if there are fewer steps
    penalty: float = 3.0  # IMACS's weight of what lies outside the mask
    protocol: Protocol = "corrected"  # "corrected" or "official", of the maps and of IMACS
    confidence: float = CONFIDENCE  # of the intervals over samples
    size: tuple[int, int] | None = None  # (rows, columns) of the maps; None for the largest grid
    resize: Resize = "linear"  # how the corrected protocol brings layers to it: "linear" or "bicubic"
    aggregations: tuple[str, ...] = ()  # names or "module:name" of aggregations
    details: int = 24  # samples shown in full in the report; all are in its table
    figures: int = 12  # samples that get a figure of their own
    # Place of the derived store of marginals (of several runs, a folder); None: beside the run, False: none.
    store: StorePlace = None
    storage_options: dict[str, Any] | None = None  # for fsspec, where the run or the derived store is a URL


def check_options(options: StudyOptions) -> None:
    """Refuse what would fail only after the marginals pass."""
    check_confidence(options.confidence)
    check_penalty(options.penalty)
    check_resize(options.resize)
    if options.protocol not in PROTOCOLS:
        raise UnknownName("protocol", options.protocol, PROTOCOLS)
