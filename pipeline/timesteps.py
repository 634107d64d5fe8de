"""The steps of a generation: what the scheduler announces, and what the denoiser is really called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from i2am.storage.errors import CaptureError


@dataclass(frozen=True, slots=True)
class Moment:
    """A timestep as a denoiser call carries it.

    Attributes
    ----------
    value
        In the unit of the schedule.
    tolerance
        Half-precision models are called with a rounded timestep: how far ``value`` may be off.
    """

    value: float
    tolerance: float = 0.0

    def near(self, announced: float) -> bool:
        """Whether this is the announced timestep, as far as its precision tells."""
        return abs(self.value - announced) <= self.tolerance


def moment(value: Any) -> Moment:
    """Read a timestep that a denoiser is called with.

    Parameters
    ----------
    value
        A number, or a tensor with one value or one for each row, which must agree.

    Returns
    -------
    Moment
        The value, and how exact it is.

    Raises
    ------
    CaptureError
        If there is none, or the rows of one call are at different timesteps.
    """
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
    return Moment(found, 0.0 if exact else 2 * abs(found) * torch.finfo(tensor.dtype).eps)


def announced(scheduler: Any, first: float, tolerance: float = 0.0) -> list[float]:
    """The timesteps of the steps to come, the first one included.

    Parameters
    ----------
    scheduler
        The pipeline's scheduler, its timesteps set; partial schedules (image-to-image strength) start later.
    first
        Timestep of the first call.
    tolerance
        How far ``first`` may be off.

    Returns
    -------
    list of float
        One value for each step.

    Raises
    ------
    CaptureError
        If the scheduler does not announce the first call's timestep.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    schedule = [] if timesteps is None else [float(t) for t in torch.as_tensor(timesteps).flatten()]
    return starting_at(schedule, first, tolerance, f"{len(schedule)} timesteps of {type(scheduler).__name__}")


def starting_at(schedule: Sequence[float], first: float, tolerance: float, got: str) -> list[float]:
    """``schedule`` from the value nearest to ``first`` on; ``got`` describes it where there is none.

    Raises
    ------
    CaptureError
        If no value is within ``tolerance``.
    """
    distances = [abs(t - first) for t in schedule]
    if not distances or min(distances) > tolerance:
        raise CaptureError(
            "timesteps of the generation",
            expected=f"a schedule that holds the first call's timestep {first:g}",
            got=got,
            remedy="give them: capture(..., timesteps=[...])",
        )
    return list(schedule[distances.index(min(distances)) :])
