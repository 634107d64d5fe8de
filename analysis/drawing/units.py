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
    """Words for values.

    Attributes
    ----------
    name
        Of a value over a mask: "density".
    unit
        Behind an axis' words: "× uniform".
    bar
        Under a colour bar.
    sign
        Behind a number: "×" where it is a ratio to uniform, else nothing.
    uniform
        What uniform attention would have, or None where that depends on the layer.
    """

    name: str
    unit: str
    bar: str
    sign: str
    uniform: float | None


def units_of(attrs: Mapping[str, Any]) -> Units:
    """Words for the values of maps.

    Parameters
    ----------
    attrs
        Attributes that `i2am.analysis.maps.attribution.attribution_maps` gives.
    """
    what = {"attention": "attention", "similarity": "similarity"}.get(
        attrs["kind"], "attention and similarity"
    )
    mean = "× the mean of these maps"
    if attrs["protocol"] == "official":
        return Units("value", "official, summed over steps", f"{what}, official, {mean}", "", None)
    if attrs.get("method", "i2am") == "joint":
        return Units("value", str(attrs["units"]), f"{what}, joint softmax, {mean}", "", None)
    return Units("density", "× uniform", f"{what}, × uniform", "×", 1.0)


def drawable(maps: xr.DataArray) -> xr.DataArray:
    """Maps on the scale of pictures: densities as they are, anything else over the mean of all of them.

    Parameters
    ----------
    maps
        Any shape, with the attributes of `i2am.analysis.maps.attribution.attribution_maps`.

    Returns
    -------
    xarray.DataArray
        The same in memory, in float64; 1 is uniform attention, or the mean. Not finite where the maps are
        not.
    """
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
