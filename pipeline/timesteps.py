"""The steps of a generation: what the scheduler announces, and what the denoiser is really called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from storage.errors import CaptureError


def timestep_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The timestep in a denoiser's call: its second argument, or ``timestep``.

    Parameters
    ----------
    args, kwargs
        The call's arguments.

    Returns
    -------
    float
        The scheduler's value; for a batch of timesteps, which must agree, the common one.

    Raises
    ------
    CaptureError
        If there is none, or the rows of one call are at different timesteps.
    """
    value = kwargs["timestep"] if "timestep" in kwargs else args[1] if len(args) > 1 else None
    values = torch.as_tensor(value if value is not None else []).flatten()
    if values.numel() == 0 or bool((values != values[0]).any()):
        raise CaptureError(
            "timestep of a denoiser call",
            expected="one value, as the second argument or as timestep=",
            got="none" if values.numel() == 0 else str(values.tolist()),
            remedy="use an adapter that knows how this denoiser is called",
        )
    return float(values[0])


def announced(scheduler: Any, first: float, given: Sequence[float] | None = None) -> list[float]:
    """The timesteps of the calls to come, the first one included.

    Parameters
    ----------
    scheduler
        The pipeline's scheduler, its timesteps set; partial schedules (image-to-image strength) start later.
    first
        Timestep of the first call.
    given
        The user's own list, which wins.

    Returns
    -------
    list of float
        One value for each call.

    Raises
    ------
    CaptureError
        If the scheduler does not announce the first call's timestep.
    """
    if given is not None:
        return [float(t) for t in given]
    timesteps = getattr(scheduler, "timesteps", None)
    schedule = [] if timesteps is None else [float(t) for t in torch.as_tensor(timesteps).flatten()]
    if first not in schedule:
        raise CaptureError(
            "timesteps of the generation",
            expected=f"a schedule that holds the first call's timestep {first:g}",
            got=f"{len(schedule)} timesteps of {type(scheduler).__name__}",
            remedy="give them: capture(..., timesteps=[...])",
        )
    return schedule[schedule.index(first) :]
