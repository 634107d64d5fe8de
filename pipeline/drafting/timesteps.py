"""Which of the denoiser's arguments is the timestep, in which unit, and where the schedule stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from i2am.pipeline.drafting.watch import ModuleCall

_TIMES = (1.0, 1000.0, 0.001, 999.0)
_DEEPEST = 2


def schedule_of(pipe: Any, first: ModuleCall, later: ModuleCall | None) -> list[str]:
    """The lines ``timestep`` and ``schedule`` of a description."""
    changing = [
        name for name, value in first.numbers.items() if later is None or later.numbers.get(name) != value
    ]
    for path, schedule in _schedules(pipe):
        for name in changing:
            for times in _TIMES:
                values = [call.numbers[name] * times for call in (first, later) if call is not None]
                if all(_among(value, schedule) for value in values):
                    told = name if times == 1 else f"{{argument: {name}, times: {times:g}}}"
                    lines = [] if told == "timestep" else [f"timestep: {told}"]
                    return lines + ([f"schedule: {path}"] if path else [])
    told = changing[0] if changing else "timestep"
    return [
        f"timestep: {told}  # CHECK: it stands in no schedule of the pipeline; "
        "give timesteps: in the configuration of a capture"
    ]


def _among(value: float, schedule: list[float]) -> bool:
    return any(abs(value - each) <= 1e-4 * max(1e-3, abs(each)) for each in schedule)


def _schedules(pipe: Any) -> Iterator[tuple[str, list[float]]]:
    """The scheduler's timesteps, by an empty path, and whatever else is a list of numbers."""
    scheduler = getattr(pipe, "scheduler", None)
    if (own := _numbers(getattr(scheduler, "timesteps", None))) is not None:
        yield "", own
    holders, seen = [("", pipe, 0)], {id(pipe)}
    for path, holder, depth in holders:
        for name, value in vars(holder).items():
            where = f"{path}.{name}".lstrip(".")
            if name.startswith("_") or id(value) in seen:
                continue
            seen.add(id(value))
            if (found := _numbers(value)) is not None:
                yield where, found
            elif (
                depth < _DEEPEST
                and hasattr(value, "__dict__")
                and not isinstance(value, type | torch.nn.Module)
            ):
                holders.append((where, value, depth + 1))


def _numbers(value: Any) -> list[float] | None:
    """Numbers of a list, an array or a tensor of one axis; None if it is none of these."""
    try:
        flat = torch.as_tensor(value)
        return flat.double().tolist() if flat.ndim == 1 and len(flat) > 1 else None
    except (TypeError, ValueError, RuntimeError, KeyError):
        return None
