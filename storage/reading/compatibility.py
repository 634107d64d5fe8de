"""Whether runs can be read as one: what their layers must share, and what may differ."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

from i2am.storage.errors import InputError
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run

_SHARED = ("heads", "head_dim", "ref_prefix", "lse", "role", "logit_scale", "value_norm", "contribution")
"""What a layer must have in common with its namesakes; how it is stored, and its grids, may differ."""


def geometry(spec: LayerSpec) -> tuple[object, ...]:
    """Return the grids and tiles of a layer, which may differ between resolutions."""
    return spec.gen_grid, spec.ref_grid, spec.tile, spec.ref_tile


def describe_geometries(found: Mapping[tuple[object, ...], str]) -> str:
    """Name the first two geometries and their runs, for an error."""
    return " and ".join(
        f"{grids[0]} by {grids[1]} in {path}".replace("(", "").replace(")", "")
        for grids, path in list(found.items())[:2]
    )


def check_compatible(one: Run, other: Run) -> None:
    """Raise `InputError` if two runs cannot be read as one."""
    if (difference := _difference(one, other)) is not None:
        raise InputError(
            f"{one.path} and {other.path} cannot be read as one",
            expected="layers of the same names, heads and kind, and as many steps",
            got=difference,
            remedy="open them apart; i2am compare sets two models side by side",
        )


def _difference(one: Run, other: Run) -> str | None:
    if len(one.timesteps) != len(other.timesteps):
        return f"{len(one.timesteps)} and {len(other.timesteps)} steps"
    for first, second in zip_longest(one.layers, other.layers):
        if first != second:
            named = [repr(name) if name is not None else "none" for name in (first, second)]
            return f"layers {named[0]} and {named[1]} in one place of the model's order"
    for name, spec in one.layers.items():
        twin = other.layers[name]
        for field in _SHARED:
            if getattr(spec, field) != getattr(twin, field):
                return f"layer {name!r}: {field} {getattr(spec, field)} and {getattr(twin, field)}"
        if _kind(spec) != _kind(twin):
            return f"layer {name!r}: reference grids {spec.ref_grid} and {twin.ref_grid}"
    return None


def _kind(spec: LayerSpec) -> tuple[bool, bool]:
    """Whether the reference has a grid, and more than one token: both decide which maps exist."""
    return spec.ref_grid == (0, 0), spec.ref == 1
