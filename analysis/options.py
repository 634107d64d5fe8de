"""What a study is asked to do, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from i2am.analysis.maps.question import PROTOCOLS, Protocol
from i2am.analysis.marginals.store import StorePlace
from i2am.analysis.scores.bootstrap import CONFIDENCE, check_confidence
from i2am.analysis.scores.imacs import check_penalty
from i2am.storage.errors import UnknownName
from i2am.storage.index_selection import Indices


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
        Place of the derived store of marginals; None for beside the run, False to keep nothing. Of several
        runs: a folder for theirs.
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


def check_options(options: StudyOptions) -> None:
    """Refuse what would fail only after the marginals pass.

    Raises
    ------
    InputError, UnknownName
        For a confidence, penalty or protocol that cannot be.
    """
    check_confidence(options.confidence)
    check_penalty(options.penalty)
    if options.protocol not in PROTOCOLS:
        raise UnknownName("protocol", options.protocol, PROTOCOLS)
