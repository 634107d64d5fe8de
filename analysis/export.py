"""Saving maps to a file: NumPy (.npz), Zarr (.zarr) or a picture (.png), by the file's ending."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analysis.colour import limit
from analysis.outputs import MARK, drop_half_written, into_place, refuse_foreign_folder, refuse_inside_run
from analysis.region import sample_image
from storage.errors import AlreadyExists, InputError, NoPermission, NotFound

if TYPE_CHECKING:
    from storage import Run

ENDINGS = (".npz", ".zarr", ".png")
MAX_ROWS = 32
"""Samples in one picture, at most."""


def save_maps(
    maps: xr.DataArray, path: str | os.PathLike[str], run: Run | None = None, *, overwrite: bool = False
) -> None:
    """Save maps, whole or not at all.

    Parameters
    ----------
    maps
        As `attribution_maps` returns them.
    path
        Ends in .npz (arrays ``maps``, ``attrs`` as JSON, and one for each coordinate), .zarr (format 3, for
        ``xarray.open_zarr``) or .png (a row for each sample, one colour scale, over the run's images if
        `run` is given).
    run
        For the images under the maps of a picture.
    overwrite
        Replace what is there.

    Raises
    ------
    InputError
        If the ending is another.
    AlreadyExists
        If something is there, and `overwrite` is not set.
    NotFound, NoPermission
        If the directory does not exist, or cannot be written.
    """
    target = Path(path).absolute()  # workers may have another working directory
    if target.suffix not in ENDINGS:
        raise InputError(
            f"output {target}", expected="a name that ends in .npz, .zarr or .png", got=repr(target.suffix)
        )
    refuse_inside_run(target)
    if target.exists() and not overwrite:
        raise AlreadyExists(f"{target} exists", remedy="name another output, or allow overwriting")
    refuse_foreign_folder(target)
    if not target.parent.is_dir():
        raise NotFound(f"directory {target.parent} does not exist", remedy="make it first")
    try:
        staging = Path(tempfile.mkdtemp(prefix=".maps-", dir=target.parent))
    except PermissionError as error:
        raise NoPermission(
            f"cannot write into {target.parent}", got=str(error), remedy="name another output"
        ) from error
    try:
        made = staging / target.name
        if target.suffix == ".npz":
            _npz(maps, made)
        elif target.suffix == ".zarr":
            named = maps.to_dataset(name="maps" if maps.name is None else str(maps.name))
            named.assign_attrs(MARK).to_zarr(made, mode="w", zarr_format=3, consolidated=False)
            drop_half_written(made)
        else:
            _picture(maps, made, run)
        into_place(made, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _npz(maps: xr.DataArray, path: Path) -> None:
    coords = {
        name: np.asarray(coord.values, dtype=str) if coord.dtype == object else coord.values
        for name, coord in maps.coords.items()
    }
    fields = {f"coord_{name}": values for name, values in coords.items()}
    arrays: dict[str, Any] = {"maps": np.asarray(maps), "attrs": np.asarray(json.dumps(maps.attrs)), **fields}
    np.savez_compressed(path, **arrays)


def _picture(maps: xr.DataArray, path: Path, run: Run | None) -> None:
    from analysis.figures import map_grid, save

    if maps.sizes["sample"] > MAX_ROWS:
        raise InputError(
            f"a picture of {maps.sizes['sample']} samples",
            expected=f"at most {MAX_ROWS}",
            remedy="select samples, or save as .npz or .zarr",
        )
    image = {"r2g": "generated", "g2r": "reference"}[maps.attrs["direction"]]
    loaded = maps.compute()
    if maps.attrs["protocol"] == "official":  # the scale is in times uniform: the nearest that sums have
        loaded = (loaded / loaded.mean()).assign_attrs(maps.attrs)
    under = [
        sample_image(run, image, str(sample)) if run is not None else None for sample in maps["sample"].values
    ]
    save(map_grid(loaded, under, limit([loaded.values])), path)
