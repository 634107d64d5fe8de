"""What a study tells its caller while it works; it never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage of the study began.

    Attributes
    ----------
    stage
        "check", "marginals", "maps", "tables", "aggregations", "figures", "report" or "aggregation page".
    total
        Number of units of work in it.
    """

    stage: str
    total: int


@dataclass(frozen=True, slots=True)
class StageAdvanced:
    """Some units of a stage are done.

    Attributes
    ----------
    stage
        As in `StageStarted`.
    done, total
        Units of work done so far, and in all.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class SampleRefused:
    """A sample's data is damaged; the study goes on without it.

    Attributes
    ----------
    sample
        Its id.
    reason
        The error's one line.
    """

    sample: str
    reason: str


@dataclass(frozen=True, slots=True)
class StudyFinished:
    """Everything is written.

    Attributes
    ----------
    out
        The output directory.
    seconds
        Wall clock.
    """

    out: str
    seconds: float


Event = StageStarted | StageAdvanced | SampleRefused | StudyFinished
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""


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
