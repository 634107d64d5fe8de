"""Regions of an image (patches, a box, a mask) as weights over the tokens of a layer (METHODS.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from i2am.analysis.grids.direction import Side, check_direction, other_side, side_of
from i2am.analysis.grids.resize import Grid, area
from i2am.storage.errors import InputError, NoAnswer, ShapeMismatch
from i2am.storage.reading.run import Run
from i2am.storage.reading.run_collection import AnyRun, members_of

# (row, column); a list of those; a box (top, left, bottom, right), ends excluded; or a mask [y, x].
Region = tuple[int, int] | tuple[int, int, int, int] | Sequence[tuple[int, int]] | NDArray[Any]

# (x, y) of a pixel, from the upper left corner of an image; or a list of those.
Pixels: TypeAlias = tuple[int, int] | Sequence[tuple[int, int]]
# Images that have the size of what each side's patches lie on.
IMAGES: Mapping[Side, tuple[str, ...]] = {"gen": ("generated", "source"), "ref": ("reference",)}
PIXELS, A_MASK = "pixels ", "a mask"  # how the text of a region begins, and all that is said of a mask


def boolean_mask(mask: ArrayLike) -> NDArray[np.bool_]:
    """Mask as booleans, above one half is inside: floats from 0 to 1, integers 0 and 1 or from 0 to 255."""
    values = np.asarray(mask)
    if values.dtype == np.bool_:
        return values
    kind = values.dtype.kind
    low, high = (values.min(), values.max()) if kind in "iuf" and values.size else (0, 0)
    if kind not in "iuf" or not 0 <= low <= high <= (1 if kind == "f" else 255):  # false where there is a NaN
        raise ShapeMismatch(
            "mask values",
            expected="True and False, floats from 0 to 1, or integers from 0 to 255",
            got=f"{values.dtype} from {low} to {high}",
            remedy="compare it: mask > half is True inside",
        )
    return np.asarray(values > (127 if kind != "f" and high > 1 else 0.5))


def image_mask(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mask [y, x] of an image [y, x, channel] of 0 to 255, by the channels' mean."""
    return np.asarray(pixels.sum(axis=-1, dtype=np.uint32) > 127.5 * pixels.shape[-1])


def sample_image(run: AnyRun, name: str, sample: str) -> NDArray[np.uint8] | None:
    """Image [y, x, channel] of a sample, or None where the sample has none of that name."""
    return run.image(name, sample) if name in run.record(sample)["images"] else None


def check_inside_and_outside(mask: NDArray[np.bool_]) -> None:
    """Refuse a mask that is empty or full (`NoAnswer`)."""
    count = int(mask.sum())
    if count in (0, mask.size):
        raise NoAnswer(
            f"a mask that is {'empty' if count == 0 else 'full'}",
            expected="some pixels inside and some outside",
            got=f"{count} of {mask.size} inside",
            remedy="leave this sample out, or correct its mask",
        )


def is_mask(at: Any) -> TypeGuard[NDArray[Any]]:
    """Whether a region is a mask [y, x], rather than patches counted on a grid."""
    patches = isinstance(at, np.ndarray) and np.issubdtype(at.dtype, np.integer) and at.shape[-1:] == (2,)
    return isinstance(at, np.ndarray) and at.ndim == 2 and not patches


def region_mask(at: Region, grid: Grid) -> NDArray[np.float64]:
    """Mask [y, x] of a region given in cells of `grid`, 1 inside; a mask keeps a size of its own.

    Raises `InputError` for patches outside the grid and unknown forms, `ShapeMismatch` for a mask of another
    aspect ratio, and `NoAnswer` for an empty region.
    """
    values = np.asarray(at)
    if is_mask(at):
        mask = boolean_mask(at).astype(np.float64)
        if not same_aspect(grid, mask.shape):
            raise ShapeMismatch(
                "the mask of the region",
                expected=f"the aspect ratio of {grid[0]} x {grid[1]} patches",
                got=f"{mask.shape[0]} x {mask.shape[1]}",
                remedy="give a mask of the image that the patches lie on",
            )
    elif values.dtype.kind in "iu" and values.ndim == 1 and values.size == 4:
        mask = _box(values, grid)
    elif values.dtype.kind in "iu" and values.size and values.size % 2 == 0 and values.shape[-1] == 2:
        mask = np.zeros(grid)
        for row, column in values.reshape(-1, 2):
            if not (0 <= row < grid[0] and 0 <= column < grid[1]):
                raise InputError(
                    f"patch {row},{column}",
                    expected=f"a row from 0 to {grid[0] - 1} and a column from 0 to {grid[1] - 1}",
                    got="one outside the grid",
                )
            mask[row, column] = 1
    else:
        raise InputError(
            "at",
            expected="(row, column), a list of those, (top, left, bottom, right), or a mask [y, x]",
            got=f"{type(at).__name__} of shape {values.shape}",
        )
    if not mask.any():
        expected = "at least one patch inside"
        raise NoAnswer("an empty region", expected=expected, remedy="choose another region")
    return mask


def with_pixels(
    run: AnyRun, direction: str, at: Region | str | None, pixels: Pixels | None
) -> Region | str | None:
    """The region of a question that is asked in patches or in pixels; both are refused."""
    if pixels is None:
        return at
    if at is not None:
        raise InputError("a region", expected="at or at_pixels", got="both", remedy="leave one of them out")
    return pixel_mask(run, other_side(side_of(check_direction(direction))), pixels)


def pixel_mask(run: AnyRun, side: Side, pixels: Pixels) -> NDArray[np.bool_]:
    """Mask of some pixels of the image that a side's patches lie on."""
    sizes = {shape for member in members_of(run) for shape in _image_sizes(member, side)}
    if len(sizes) != 1:
        raise NoAnswer(
            f"a region in pixels of the {'generated image' if side == 'gen' else 'reference'}",
            expected="such images in the run, all of one size",
            got=", ".join(f"{rows} x {columns}" for rows, columns in sorted(sizes)) or "none",
            remedy="give patches, a mask, or the name of a mask image",
        )
    (rows, columns), points = sizes.pop(), np.asarray(pixels)
    if points.dtype.kind not in "iu" or points.ndim not in (1, 2) or points.shape[-1] != 2:
        raise InputError("at_pixels", expected="(x, y), whole numbers, or a list of those", got=repr(pixels))
    mask = np.zeros((rows, columns), dtype=bool)
    for x, y in points.reshape(-1, 2):
        if not (0 <= x < columns and 0 <= y < rows):
            raise InputError(
                f"pixel {x},{y}",
                expected=f"x from 0 to {columns - 1} and y from 0 to {rows - 1}",
                got="one outside the image",
            )
        mask[y, x] = True
    return mask


def _image_sizes(run: Run, side: Side) -> set[Grid]:
    """(rows, columns) of the images of a side; all samples of a run have one size."""
    for name in IMAGES[side]:
        for sample in run.samples if name in run.images else ():
            if name in (images := run.record(sample)["images"]):
                rows, columns = images[name]["shape"][:2]
                return {(rows, columns)}
    return set()


def region_text(at: Region | str | None, pixels: Pixels | None = None) -> str:
    """A region as the text that attributes hold: "12,8", "2,3,9,12", "1,2;1,3", "pixels 40,52", or a name.

    A mask is "a mask", with its rows if it is small: "a mask 010/000".
    """
    if pixels is not None:
        return PIXELS + region_text(np.asarray(pixels).reshape(-1, 2))
    if isinstance(at, str):
        return at
    values = np.asarray(at)
    if is_mask(at):
        rows = "/".join("".join("01"[inside] for inside in row) for row in boolean_mask(at).astype(int))
        return f"{A_MASK} {rows}" if values.size <= 64 else A_MASK
    return ";".join(",".join(map(str, place)) for place in (values if values.ndim == 2 else [values]))


def read_region(text: str) -> list[tuple[int, ...]] | None:
    """Patches, the corners of a box or pixels from `region_text`; None for an image's name, and for masks."""
    numbers = text.removeprefix(PIXELS)
    if not re.fullmatch(r"[\d,;]+", numbers):
        return None
    return [tuple(map(int, place.split(","))) for place in numbers.split(";")]


def read_tokens(at: object) -> tuple[int, ...] | None:
    """Numbers of tokens without a place, such as words, from "tokens 3,5"; None for other regions."""
    found = re.fullmatch(r"tokens? (\d+(?:,\d+)*)", at) if isinstance(at, str) else None
    return None if found is None else tuple(map(int, found[1].split(",")))


def read_mask(text: str) -> NDArray[np.float64] | None:
    """The small mask [y, x] of a text from `region_text`, or None if it has none."""
    rows = re.fullmatch(f"{A_MASK} ([01/]+)", text)
    return None if rows is None else np.asarray([list(map(float, row)) for row in rows[1].split("/")])


def same_aspect(grid: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether (rows, columns) of `size` fit `grid`: their aspect ratios differ by at most one cell."""
    if not min(*grid, *size):
        return False
    skew = (grid[0] * size[1]) / (grid[1] * size[0])
    return abs(skew - 1) <= 1 / min(grid)


def _box(corners: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    top, left, bottom, right = (int(corner) for corner in corners)
    if not (0 <= top < bottom <= grid[0] and 0 <= left < right <= grid[1]):
        raise InputError(
            f"box {top},{left},{bottom},{right}",
            expected=f"0 <= top < bottom <= {grid[0]} and 0 <= left < right <= {grid[1]}",
            remedy="ends are excluded, and counted in patches",
        )
    mask = np.zeros(grid)
    mask[top:bottom, left:right] = 1
    return mask


def token_weights(mask: ArrayLike, grid: Grid) -> NDArray[np.float32]:
    """Weights (row * column) of tokens: the share of each cell of `grid` that the mask [y, x] covers."""
    return area(mask, grid).reshape(-1).astype(np.float32)
