"""The arguments of `attribution_maps`, checked and resolved before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from i2am.analysis.grids import regions, tiled_layers
from i2am.analysis.grids.direction import Direction, check_direction, side_of
from i2am.analysis.grids.resize import RESIZES, Grid, Resize
from i2am.analysis.grids.selection import Selection, is_similarity, keep_layers_with, select, split_steps
from i2am.analysis.maps import official
from i2am.analysis.maps.layer_maps import MapSpec
from i2am.analysis.maps.official_layers import official_selection, official_size
from i2am.analysis.maps.token_sources import KINDS, METHODS, Method
from i2am.storage.errors import InputError, NoAnswer, UnknownName
from i2am.storage.reading.run import Run

Level = Literal["unified", "time", "head", "layer", "specific"]
LEVELS: tuple[Level, ...] = ("unified", "time", "head", "layer", "specific")
Protocol = Literal["corrected", "official"]
PROTOCOLS: tuple[Protocol, ...] = ("corrected", "official")
MAX_SIZE = 16384  # rows or columns of a map, at most
_DENSITY = "density (1 = uniform attention)"
_UNITS: Mapping[str, str] = {
    "r2g": _DENSITY,
    "g2r": _DENSITY,
    "daam": _DENSITY,
    "share": "share of the joint softmax (0 to 1)",
    "g2r_joint": "density × share of the joint softmax",
    "norm": "density × norm of the value through the output projection",
    "contribution": "norm of what the reference adds / norm of what it is added to",
}
_KEPT: Mapping[str, str] = {"joint": "lse", "norm": "value_norm", "contribution": "contribution"}
"""Method to what a layer must have been captured with."""


@dataclass(frozen=True)
class Question:
    """A question about a run that has an answer."""

    direction: Direction
    level: Level
    protocol: Protocol
    method: Method
    at: regions.Region | str | None  # the region of the specific level, else None
    selection: Selection
    map_spec: MapSpec

    @property
    def units(self) -> str:
        """Units of the maps, in words."""
        kind = self.method if self.method == "norm" else KINDS[self.method, self.direction]
        return official.UNITS if self.protocol == "official" else _UNITS[kind]

    @property
    def labels(self) -> list[Any] | None:
        """Labels along the level's own axis, or None where it has none."""
        if self.level == "time":
            return [f"{group[0]}-{group[-1]}" for group in self.map_spec.groups]
        if self.level == "head":
            return list(self.selection.heads or range(self.selection.layers[0].heads))
        return list(tiled_layers.group_tiles(self.selection.layers)) if self.level == "layer" else None


def resolve_question(
    run: Run,
    samples: Sequence[str] | str | None,
    size: Grid | None,
    direction: str,
    level: str | None,
    selected: tuple[Any, ...],
    time_groups: int,
    at: regions.Region | str | None,
    protocol: str,
    method: str | None = None,
    resize: str = "linear",
) -> Question:
    """Check and resolve the arguments of `attribution_maps`; `selected` is (layers, steps, heads)."""
    direction, chosen = check_direction(direction), method is not None
    method = "i2am" if method in (None, "attention") else method
    level = level or ("unified" if at is None else "specific")
    known: Mapping[str, tuple[str, Sequence[str]]] = {
        "level": (level, LEVELS), "protocol": (protocol, PROTOCOLS), "method": (method, METHODS),
        "resize": (resize, RESIZES),
    }  # fmt: skip
    for what, (got, names) in known.items():
        if got not in names:
            raise UnknownName(what, got, names)
    _check_answerable(direction, level, at, protocol, method, selected[2])
    size, asked = _checked_size(size), (*selected, samples)
    if protocol == "official":
        selection = official_selection(run, direction, *asked)
        size = official_size(selection, direction, size)
    else:
        tokens = regions.read_tokens(at)
        on_reference = direction == "g2r" or (level == "specific" and tokens is None)
        selection = select(run, direction, *asked, on_reference=on_reference)
        if tokens is not None:
            _check_tokens(selection, direction, tokens)
        if not chosen and _is_similarity_with_contribution(selection, direction, level):
            method = "contribution"
        if method in _KEPT:
            selection = keep_layers_with(selection, _KEPT[method], named=selected[0] is not None)
    _check_tiles(selection, direction, protocol)
    by_head, steps = level == "head", selection.steps
    groups = split_steps(steps, time_groups) if level == "time" else [steps]
    if by_head:
        _check_heads(selection)
    size = size or tiled_layers.largest_grid(selection.layers, side_of(direction))
    how = cast(Resize, "bicubic" if protocol == "official" else resize)
    map_spec = MapSpec(direction, tuple(groups), size, selection.heads, by_head, how)
    return Question(
        direction, cast(Level, level), cast(Protocol, protocol), cast(Method, method), at, selection, map_spec
    )


def _is_similarity_with_contribution(selection: Selection, direction: str, level: str) -> bool:
    """Whether R2G is a similarity, which the model never used, and what the reference adds is known."""
    asked = direction == "r2g" and level in ("unified", "time", "layer") and selection.heads is None
    return asked and all(is_similarity(layer) and layer.contribution for layer in selection.layers)


def _check_answerable(
    direction: Direction, level: str, at: regions.Region | str | None, protocol: str, method: str, heads: Any
) -> None:
    if (at is not None) != (level == "specific"):
        raise InputError(
            "at",
            expected="a region at the specific level, and nothing at the others",
            got=f"{'a region' if at is not None else 'nothing'} at level {level!r}",
        )
    is_official, added = protocol == "official", method == "contribution"
    for impossible, what, expected, got, remedy in (
        (
            method == "daam" and direction == "g2r", "DAAM on the reference",
            "direction r2g: DAAM's maps lie on the generated image", "g2r", "ask for r2g",
        ),
        (
            added and direction == "g2r", "contributions on the reference",
            "direction r2g: what is added lies on the generated image", "g2r", "ask for r2g, or method norm",
        ),
        (
            added and level in ("head", "specific"), f"contributions at the {level} level",
            "unified, time or layer: all heads and tokens together are added", level, "ask for method norm",
        ),
        (
            added and heads is not None, "contributions of some heads",
            "all heads, which are added together", repr(heads), "leave heads out, or ask for method norm",
        ),
        (
            method != "i2am" and is_official, f"method {method!r} under the official protocol",
            "the corrected protocol: the paper's code has no such map", "official", "leave the protocol out",
        ),
        (
            is_official and (direction, level) == ("r2g", "specific"), "official r2g at the specific level",
            "g2r: the official code has no specific map on the generated image", "r2g",
            "use the corrected protocol",
        ),
    ):  # fmt: skip
        if impossible:
            raise NoAnswer(what, expected=expected, got=got, remedy=remedy)


def _check_tokens(selection: Selection, direction: Direction, tokens: Sequence[int]) -> None:
    """Tokens without a place are asked for by number, in the model's order."""
    for layer in selection.layers:
        if direction == "g2r" or layer.ref_grid != (0, 0):
            raise NoAnswer(
                f"{direction} of {len(tokens)} tokens of layer {layer.name!r}",
                expected="r2g, and tokens without a place, such as words",
                got=f"{direction}, tokens on a grid of {layer.ref_grid[0]} x {layer.ref_grid[1]}",
                remedy="ask at patches: at=(row, column)",
            )
        if max(tokens) >= layer.ref:
            raise InputError(
                f"token {max(tokens)} of layer {layer.name!r}", expected=f"0 to {layer.ref - 1}",
                got="one beyond", remedy="number them in the model's order",
            )  # fmt: skip


def _checked_size(size: Grid | None) -> Grid | None:
    if size is None:
        return None
    values = np.asarray(size)
    if values.shape != (2,) or values.dtype.kind not in "iu" or values.min() < 1 or values.max() > MAX_SIZE:
        raise InputError("size", expected=f"(rows, columns), each from 1 to {MAX_SIZE}", got=repr(size))
    return int(values[0]), int(values[1])


def _check_tiles(selection: Selection, direction: Direction, protocol: str) -> None:
    tiled_layers.check_covered(selection.layers, direction)
    tiled = [layer.name for layer in selection.layers if layer.tile is not None]
    if tiled and protocol == "official":
        raise NoAnswer(
            f"the official protocol for layer {tiled[0]!r}",
            expected="layers of whole pictures: the paper's code has no tiles",
            got="a tile",
            remedy="use the corrected protocol",
        )


def _check_heads(selection: Selection) -> None:
    counts = {layer.name: layer.heads for layer in selection.layers}
    if selection.heads is None and len(set(counts.values())) > 1:
        raise NoAnswer(
            "the head level over layers of different head counts",
            expected="the same number of heads in every layer",
            got=", ".join(f"{name}: {heads}" for name, heads in counts.items()),
            remedy="select layers or heads",
        )
