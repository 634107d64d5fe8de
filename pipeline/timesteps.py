"""The steps of a generation: what the scheduler announces, and what the denoiser is really called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from i2am.storage.errors import CaptureError


@dataclass(frozen=True, slots=True)
class Timestep:
    """A timestep as a denoiser call carries it, in the unit of the schedule.

    Half-precision models are called with a rounded timestep: ``value`` may be off by ``tolerance``.
    """

    value: float
    tolerance: float = 0.0

    def near(self, announced: float) -> bool:
        """Whether this is the announced timestep, as far as its precision tells."""
        return abs(self.value - announced) <= self.tolerance


def read_timestep(value: Any) -> Timestep:
    """Read a denoiser's argument: a number, or a tensor with one value or one for each row, all equal."""
    tensor = torch.as_tensor(value if value is not None else [])
    values = tensor.flatten()
    if values.numel() == 0 or bool((values != values[0]).any()):
        raise CaptureError(
            "timestep of a denoiser call",
            expected="one value for all rows",
            got="none" if values.numel() == 0 else str(values.tolist()),
            remedy="use an adapter that knows how this denoiser is called",
        )
    found = float(values[0])
    exact = not tensor.is_floating_point()
    # Rounded on its way into the model, and again where it is scaled there and back.
    return Timestep(found, 0.0 if exact else 2 * abs(found) * torch.finfo(tensor.dtype).eps)


def scheduler_of(pipe: Any) -> Any:
    """A pipeline's scheduler, by diffusers' name or by that of research code; None if it has none."""
    for holder in (pipe, getattr(pipe, "pipe", None)):  # a wrapper holds the pipeline that it calls
        for name in ("scheduler", "noise_scheduler"):
            if (found := getattr(holder, name, None)) is not None:
                return found
    return None


def remaining_timesteps(
    scheduler: Any, first: float, tolerance: float = 0.0, count: int | None = None
) -> list[float]:
    """The scheduler's timesteps from ``first`` on, ``count`` of them where the pipeline says how many.

    Partial schedules start late (image-to-image strength) or end early (``denoising_end``). Where a timestep
    stands twice, the scheduler's ``begin_index``, else the count, tells which is meant.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    schedule = [] if timesteps is None else [float(t) for t in torch.as_tensor(timesteps).flatten()]
    begin = getattr(scheduler, "begin_index", None)
    for start in (-1 if begin is None else int(begin), len(schedule) - count if count else -1):
        if 0 <= start < len(schedule) and abs(schedule[start] - first) <= tolerance:
            return schedule[start:][:count]
    got = f"{len(schedule)} timesteps of {type(scheduler).__name__}"
    return starting_at(schedule, first, tolerance, got)[:count]


def announced_steps(pipe: Any) -> int | None:
    """How many denoiser steps the pipeline says that its call makes; None if it does not say."""
    found = getattr(pipe, "num_timesteps", None)
    return found if isinstance(found, int) and found > 0 else None


def starting_at(schedule: Sequence[float], first: float, tolerance: float, got: str) -> list[float]:
    """``schedule`` from the value nearest to ``first`` on; ``got`` describes it where there is none."""
    distances = [abs(t - first) for t in schedule]
    if not distances or min(distances) > tolerance:
        raise CaptureError(
            "timesteps of the generation",
            expected=f"a schedule that holds the first call's timestep {first:g}",
            got=got,
            remedy="give them: capture(..., timesteps=[...])",
        )
    return list(schedule[distances.index(min(distances)) :])
