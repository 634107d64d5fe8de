"""Numbers in and out: exact conversion to the stored dtype, and a cheap count of non-finite values.

float16 and float32 are stored as they are. Zarr v3 has no bfloat16 that every reader knows, so bfloat16 is
stored as float32, of which it is an exact subset.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from i2am.storage.errors import ShapeMismatch

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 17
"""Numbers per pass of `count_nonfinite`: the working set stays in the processor's cache."""


def stored_dtype(dtype: str) -> str:
    return "float16" if dtype == "float16" else "float32"


def check_float(what: str, array: Array) -> None:
    """Raise `ShapeMismatch` for arrays that are not floating point."""
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ShapeMismatch(
            f"{what}: dtype",
            expected="float16, bfloat16 (ml_dtypes) or float32",
            got=str(array.dtype),
            remedy="pass the numbers themselves, not their bits",
        )


def _widen(array: Array) -> Array:
    """float32 of bfloat16 (whose bits are the upper half of a float32)."""
    bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def exact(what: str, array: Array, dtype: str) -> Array:
    """Convert to the stored form of a model dtype; `ShapeMismatch` if that would round a value."""
    target = np.dtype(stored_dtype(dtype)).newbyteorder("<")
    source = _widen(array) if array.dtype.name == "bfloat16" else array
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.ascontiguousarray(source, dtype=target)
        lossy = source.dtype.itemsize > target.itemsize and not np.array_equal(out, source, equal_nan=True)
    if dtype == "bfloat16" and array.dtype.name != "bfloat16" and not lossy:
        lossy = bool(np.any((out.view(np.uint32) & np.uint32(0xFFFF)) != 0))
    if lossy:
        raise ShapeMismatch(
            f"{what}: {array.dtype} values",
            expected=f"values that {dtype} holds exactly",
            got="values that would be rounded",
            remedy="declare the layer with the dtype that the model uses",
        )
    return out


def count_nonfinite(array: Array) -> int:
    bits, exponent = (np.uint16, 0x7C00) if array.dtype.itemsize == 2 else (np.uint32, 0x7F800000)
    flat: Array = array.reshape(-1).view(bits)
    mask: Any = bits(exponent)
    count = 0
    for start in range(0, flat.size, _BLOCK):
        count += int(np.count_nonzero((flat[start : start + _BLOCK] & mask) == mask))
    return count
