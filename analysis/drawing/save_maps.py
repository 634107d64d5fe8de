"""Saving maps to a file: NumPy (.npz), Zarr (.zarr) or a picture (.png), by the file's ending."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from i2am.analysis.drawing.colours import RGB
from i2am.analysis.drawing.level_panels import heading, level_block, plain_panel, specific_panels
from i2am.analysis.drawing.matplotlib_style import save
from i2am.analysis.drawing.panels import NO_IMAGES, Block, Panel, SampleImages, block
from i2am.analysis.drawing.sheet import sheet
from i2am.analysis.drawing.units import drawable, units_of
from i2am.analysis.grids.direction import DIRECTIONS
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.maps.shares import REST, layers_of_reference, reference_shares
from i2am.analysis.maps.write import BlockwiseMaps, write_maps
from i2am.analysis.output_directory import (
    MAPS_ATTRIBUTES,
    alone_in,
    move_into_place,
    refuse_foreign_folder,
    refuse_inside_run,
    remove_partial_chunks,
    scratch,
)
from i2am.storage.errors import AlreadyExists, InputError, NoAnswer, NoPermission, NotFound
from i2am.storage.reading.one_reference import one_reference, references_of

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun

ENDINGS = (".npz", ".zarr", ".png")
NOTE = "R2G, over the image: where a reference was used. G2R, over the reference: what of it was used."
MOST_MAPS = 512
"""Maps in one picture, at most: it is then some 13,000 pixels high."""


def save_maps(
    maps: xr.DataArray, path: str | os.PathLike[str], run: AnyRun | None = None, *, overwrite: bool = False
) -> None:
    """Save maps, as `attribution_maps` returns them, whole or not at all.

    `path` ends in .npz (arrays ``maps``, ``attrs`` as JSON, and one for each coordinate), .zarr (format 3,
    for ``xarray.open_zarr``) or .png (one colour scale, over the run's images if `run` is given, a chosen
    region marked on its image). What is there is replaced only with `overwrite`.
    """
    target = _checked_target(path, overwrite)

    def write(made: Path) -> None:
        if target.suffix == ".npz":
            _npz(maps, made)
        elif target.suffix == ".zarr":
            named = {"maps" if maps.name is None else str(maps.name): BlockwiseMaps.of(maps)}
            write_maps(named, list(maps["sample"].values), made, attrs=MAPS_ATTRIBUTES)
            remove_partial_chunks(made)
        else:
            _picture(maps, made, run)

    _put(target, write, overwrite)


def save_references(
    run: AnyRun, path: str | os.PathLike[str], *, overwrite: bool = False, **asked: Any
) -> None:
    """Draw every reference of a run, and words, in one picture (.png); `asked` as for `references_sheet`."""
    target = _checked_target(path, overwrite, (".png",))
    picture = references_sheet(run, **asked)
    _put(target, lambda made: save(picture, made), overwrite)


def _put(target: Path, write: Callable[[Path], None], overwrite: bool) -> None:
    """Write in a scratch folder, then move into place."""
    with scratch(target.parent, ".maps-") as staging:
        made = staging / target.name
        write(made)
        with alone_in(target.parent, target.name):
            if target.exists() and not overwrite:  # it came meanwhile
                raise _exists(target)
            refuse_foreign_folder(target)
            move_into_place(made, target)


def _checked_target(path: str | os.PathLike[str], overwrite: bool, endings: Sequence[str] = ENDINGS) -> Path:
    """The output's path, if it may be written."""
    target = Path(path).absolute()  # workers may have another working directory
    *first, last = endings
    listed = f"{', '.join(first)} or {last}" if first else last
    if target.suffix not in endings:
        raise InputError(
            f"output {target}",
            expected=f"a name that ends in {listed}",
            got=repr(target.suffix),
        )
    refuse_inside_run(target)
    if target.exists() and not overwrite:
        raise _exists(target)
    refuse_foreign_folder(target)
    if not target.parent.is_dir():
        raise NotFound(f"directory {target.parent} does not exist", remedy="make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise NoPermission(f"cannot write into {target.parent}", remedy="name another output")
    return target


def _exists(target: Path) -> AlreadyExists:
    remedy = "name another output, or overwrite: --overwrite, overwrite=True"
    return AlreadyExists(f"{target} exists", remedy=remedy)


def _npz(maps: xr.DataArray, path: Path) -> None:
    coords = {
        name: np.asarray(coord.values, dtype=str) if coord.dtype == object else coord.values
        for name, coord in maps.coords.items()
    }
    fields = {f"coord_{name}": values for name, values in coords.items()}
    arrays: dict[str, Any] = {"maps": np.asarray(maps), "attrs": np.asarray(json.dumps(maps.attrs)), **fields}
    np.savez_compressed(path, **arrays)


def _picture(maps: xr.DataArray, path: Path, run: AnyRun | None) -> None:
    """Draw maps as the figures of a study do: a block for each sample, or all samples in one."""
    count = maps.sizes["sample"] * math.prod(maps.shape[1:-2])
    if count > MOST_MAPS:
        raise InputError(
            f"a picture of {count} maps",
            expected=f"at most {MOST_MAPS}",
            remedy="select samples, layers or heads, or save as .npz or .zarr",
        )
    attrs = maps.attrs
    note = "Thick yellow: what was asked about." if attrs["level"] == "specific" and run is not None else ""
    title = f"{heading(attrs)}, {attrs['level']} level"
    save(sheet(_blocks(drawable(maps), run), title, units_of(attrs).bar, note), path)


def _blocks(maps: xr.DataArray, run: AnyRun | None) -> list[Block]:
    """A block for each sample of drawable maps with a level axis; else one block of all samples."""
    blocks, panels = [], []
    for sample in (str(name) for name in maps["sample"].values):
        images = NO_IMAGES if run is None else SampleImages.read(run, sample)
        own = maps.sel(sample=sample)
        if own.ndim == 3:
            blocks.append(level_block(own, images, sample))
        elif own.attrs["level"] == "specific":
            panels += specific_panels(own, images, run, sample)
        else:
            panels.append(plain_panel(own, images, sample))
    pairs = maps.attrs["level"] == "specific" and run is not None
    return blocks or [block("", panels, together=2 if pairs else 1)]


def references_sheet(
    run: AnyRun,
    samples: Sequence[str] | str | None = None,
    layers: Sequence[str] | str | None = None,
    **asked: Any,
) -> RGB:
    """A block for each sample: each reference's R2G over the image, with its share, and its G2R over itself.

    ``asked``: steps, heads, store, as for `attribution_maps`.
    """
    panels: dict[str, list[Panel]] = {}
    shares, bar = {}, ""
    with suppress(NoAnswer):  # of softmaxes of their own
        rows = reference_shares(run, samples, layers, **asked).iter_rows()
        shares = {(sample, name): f", {share:.1%}" for sample, name, share in rows}
    for name in references_of(run):
        view, own_layers = one_reference(run, name), layers_of_reference(run, name, layers)
        if own_layers == []:
            continue
        for direction in DIRECTIONS:
            try:
                maps = attribution_maps(
                    view, direction, samples=samples, method="i2am", layers=own_layers, **asked
                ).compute()
            except NoAnswer:
                continue
            bar = units_of(maps.attrs).bar
            for sample in map(str, maps["sample"].values):
                own, values = SampleImages.read(view, sample), maps.sel(sample=sample).values
                picture = own.images.get("generated" if direction == "r2g" else "reference")
                words = f"{name}: {direction.upper()}" + (
                    shares.get((sample, name), "") * (direction == "r2g")
                )
                begun = panels.setdefault(sample, [Panel("generated", own.images.get("generated"))])
                begun.append(Panel(words, picture, values.astype(np.float64)))
    blocks = [_block(sample, found, shares) for sample, found in panels.items()]
    note = NOTE + (" In percent: its share of all attention." if shares else "")
    return sheet(blocks, "Every reference, and words", bar, note)


def _block(sample: str, panels: list[Panel], shares: dict[tuple[str, str], str]) -> Block:
    rest = shares.get((sample, REST), "")
    return block(f"{sample}{rest} of attention elsewhere" if rest else sample, panels)
