"""What a capture emits while it runs: typed events, so that workers never print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class RunOpened:
    """A run was created or resumed: ``missing`` of its ``declared`` samples are still to be captured."""

    path: str
    declared: int
    missing: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """Call ``step`` (from 1) of ``steps`` of the denoiser has ended for ``samples``."""

    samples: tuple[str, ...]
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class SampleDone:
    """A sample is committed; ``seconds`` is its share of the generation's time."""

    sample: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """All that is left is being written by other processes: the first sample of each batch."""

    samples: tuple[str, ...]


Event: TypeAlias = RunOpened | StepDone | SampleDone | Waiting
Listener: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that does nothing."""
