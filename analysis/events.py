"""What a study tells its caller while it works; it never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage began, such as "check", "marginals", "maps", "tables", "figures" or "report"."""

    stage: str
    total: int  # units of work


@dataclass(frozen=True, slots=True)
class StageAdvanced:
    """So many units of a stage are done."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class SampleRefused:
    """A sample's data is damaged; the study goes on without it."""

    sample: str
    reason: str  # one line, which names the sample and the layer


@dataclass(frozen=True, slots=True)
class StudyFinished:
    """Everything is written into the directory `out`, after so many seconds."""

    out: str
    seconds: float


Event = StageStarted | StageAdvanced | SampleRefused | StudyFinished
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""


def counter(emit: Listener, stage: str, total: int) -> Callable[..., None]:
    """Emit that a stage started; each call of the result, with any arguments, emits one more unit."""
    done = 0

    def step(*_: object) -> None:
        nonlocal done
        done += 1
        emit(StageAdvanced(stage, done, total))

    emit(StageStarted(stage, total))
    return step
