"""The layers of the official protocol, and the size of its maps. Source: I²AM's repositories."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.resize import Grid
from i2am.analysis.grids.selection import Selection, has_reference_map, select
from i2am.analysis.maps.official import SIZE
from i2am.storage.errors import InputError, NoAnswer
from i2am.storage.index_selection import Indices
from i2am.storage.reading.one_reference import references_of
from i2am.storage.reading.run_collection import AnyRun

MIDDLE = re.compile(r"mid_block|middle_block")
WARP = re.compile(r"warp_flow_blks")
WARP_G2R = re.compile(r"warp_flow_blks\.4(?!\d)")


def official_selection(
    run: AnyRun,
    direction: Direction,
    layers: Sequence[str] | str | None,
    steps: Indices | None,
    heads: Indices | None,
    samples: Sequence[str] | str | None,
) -> Selection:
    """As `select`, with the official layers where none are named; for "g2r" all have one reference grid.

    Layers of a single pooled token are kept for "r2g", as in the paper.
    """
    names = default_layers(run, direction) if layers is None else layers
    selection = select(run, direction, names, steps, heads, samples)
    if layers is None:
        found = {layer.name for layer in selection.layers}
        selection = replace(selection, left_out=tuple(name for name in run.layers if name not in found))
    grids = {layer.ref_grid for layer in selection.layers}
    if direction == "g2r" and len(grids) > 1:
        raise NoAnswer(
            "official g2r over layers of different reference grids",
            expected="one grid: the official code does not resize these maps",
            got=", ".join(f"{rows}x{columns}" for rows, columns in sorted(grids)),
            remedy="select layers of one grid, or use the corrected protocol",
        )
    return selection


def default_layers(run: AnyRun, direction: Direction) -> list[str]:
    """Names of the layers that the official code would hook in this run."""
    first, *_ = references_of(run)
    own = [layer for layer in run.layers.values() if layer.reference == first]
    able = [layer.name for layer in own if direction == "r2g" or has_reference_map(layer)]
    outer = [name for name in able if not MIDDLE.search(name)]
    if direction == "g2r":
        found = [name for name in outer if WARP_G2R.search(name)] or outer
    else:
        found = [name for name in outer if not WARP.search(name)] or outer
    if not found:
        raise NoAnswer(
            f"official {direction} of this run",
            expected="a layer outside the middle block"
            + (" whose reference tokens have a place in the reference image" if direction == "g2r" else ""),
            got=f"{len(able)} layer(s) of the middle block, and no other that can answer",
            remedy="name the layers" if able else "ask for r2g, which is then a similarity",
        )
    return found


def official_size(selection: Selection, direction: Direction, size: Grid | None) -> Grid:
    """Size of the maps: 64 x 64 for R2G where none is given; the layers' own reference grid for G2R."""
    if direction == "r2g":
        return SIZE if size is None else size
    own = selection.layers[0].ref_grid
    if size is not None and size != own:
        raise InputError(
            "size",
            expected=f"{own[0]} x {own[1]}, the layers' own grid: official g2r maps are not resized",
            got=f"{size[0]} x {size[1]}",
            remedy="leave the size out, or use the corrected protocol",
        )
    return own
