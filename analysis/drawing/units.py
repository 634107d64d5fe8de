"""What the numbers of maps are called, and how they are brought onto the scale that all pictures share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

DIRECTION_WORDS: Mapping[str, str] = {"r2g": "on the generated image", "g2r": "on the reference"}
"""Where each direction's maps lie."""


@dataclass(frozen=True, slots=True)
class Units:
    """Words for values."""

    name: str  # of a value over a mask: "density"
    unit: str  # behind the words of an axis: "× uniform"
    bar: str  # along a colour bar
    sign: str  # behind a number: "×" where it is a ratio to uniform, else nothing
    uniform: float | None  # what uniform attention would have; None where that depends on the layer


def units_of(attrs: Mapping[str, Any]) -> Units:
    """Words for the values of maps, from the maps' attributes."""
    kind = str(attrs["kind"])
    what = "attention and similarity" if kind == "mixed" else kind
    mean = "× the mean of these maps"
    if attrs["protocol"] == "official":
        return Units("value", "official, summed over steps", f"{what}, official, {mean}", "", None)
    if attrs.get("method", "i2am") == "joint":
        return Units("value", str(attrs["units"]), f"{what}, joint softmax, {mean}", "", None)
    if attrs.get("method", "i2am") in ("norm", "contribution"):
        times = "" if kind == "contribution" else " times value norm"
        return Units("value", str(attrs["units"]), f"{what}{times}, {mean}", "", None)
    return Units("density", "× uniform", f"{what}, × uniform", "×", 1.0)


def drawable(maps: xr.DataArray) -> xr.DataArray:
    """Maps in memory on the scale of pictures: densities as they are, others over the mean of all values."""
    loaded = maps.astype(np.float64).compute()
    if units_of(maps.attrs).uniform is not None:
        return loaded
    values = loaded.values
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if known.size else 0.0
    return loaded.copy(data=values / mean if mean > 0 else np.where(np.isfinite(values), 1.0, np.nan))


def kind_words(kind: str) -> str:
    """Words in brackets for maps that are not attention alone; nothing for attention."""
    return "" if kind == "attention" else f" ({kind})"
