"""What the factories of research repositories share: the user's checkout, and noise that a seed decides."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


@contextlib.contextmanager
def inside(checkout: str) -> Iterator[None]:
    """Import from a checkout and read the paths that its code and its user give from there."""
    root = str(Path(checkout).expanduser().resolve())
    if root not in sys.path:
        sys.path.insert(0, root)
    with contextlib.chdir(root):
        yield


@contextlib.contextmanager
def seeded(generator: Any, device: str) -> Iterator[None]:
    """Tie torch's own random numbers, which encoders draw from, to the sample's generator."""
    first = generator[0] if isinstance(generator, list) else generator
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        if first is not None:
            torch.manual_seed(first.initial_seed())
        yield


def autocast(device: str, dtype: str) -> torch.autocast:
    """Mixed precision, as the repositories' scripts run; none in float32."""
    return torch.autocast(device.split(":")[0], getattr(torch, dtype), enabled=dtype != "float32")
