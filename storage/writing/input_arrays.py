"""What `Sink.put` takes: arrays checked against their layer, and turned into pieces of stored arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from i2am.storage.errors import InputError, ShapeMismatch
from i2am.storage.format.block import scaled_logits
from i2am.storage.format.dtypes import check_float, exact, stored_dtype
from i2am.storage.format.half_float import widened
from i2am.storage.format.layer_spec import LayerSpec

Array = np.ndarray[Any, Any]
Rows = Callable[[slice], Array]

_SERIAL = 1 << 16
"""Multiplications that OpenBLAS does on the calling thread: its own threads spin after each product, and
would take processors from a model that runs beside the writers (15% of a generation on two cores)."""

_FEWEST = 8
"""Rows of queries below which a product is left whole."""

_AXES = {
    "query": "[head, gen, dim]",
    "key": "[head, ref, dim]",
    "scores": "[head, gen, ref]",
    "lse": "[head, gen]",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of one stored array.

    Parameters
    ----------
    kind : str
        "query", "key", "scores" or "lse".
    at : int
        Index along the step axis.
    rows : callable
        Slice of heads to their values in the stored dtype; the work is done when it is called.
    nbytes : int
        Bytes that the piece keeps alive.
    """

    kind: str
    at: int
    rows: Rows
    nbytes: int


def checked(spec: LayerSpec, kind: str, array: Array) -> Array:
    """Check shape and kind of number of an incoming array.

    Parameters
    ----------
    spec : LayerSpec
        The layer.
    kind : str
        "query", "key", "scores" or "lse".
    array : ndarray
        Heads first, as `i2am.storage.writing.sink.Sink.put` describes.

    Returns
    -------
    ndarray
        The array itself.

    Raises
    ------
    ShapeMismatch
        If it does not fit.
    """
    what = f"layer {spec.name!r}: {kind}"
    sizes = {
        "query": (spec.gen, spec.head_dim),
        "key": (spec.ref, spec.head_dim),
        "scores": (spec.gen, spec.ref),
        "lse": (spec.gen,),
    }
    shape = (spec.heads, *sizes[kind])
    if array.shape != shape:
        raise ShapeMismatch(what, expected=f"{shape} {_AXES[kind]}", got=str(array.shape))
    check_float(what, array)
    return array


def check_choice(spec: LayerSpec, given: Mapping[str, Array]) -> None:
    """Check that the arrays that came together suit the layer's representation.

    Parameters
    ----------
    spec : LayerSpec
        The layer, its representation decided.
    given : mapping
        Kind to array.

    Raises
    ------
    InputError
        Saying which arrays would be right.
    """
    what = f"layer {spec.name!r}"
    if not given:
        raise InputError(f"{what}: no array", expected="query and key, or scores")
    if "lse" in given and not spec.lse:
        raise InputError(
            f"{what}: lse",
            expected="none: the layer is declared with lse=False",
            remedy="declare it with lse=True",
        )
    if "scores" not in given:
        return
    if spec.representation == "factors":
        raise InputError(
            f"{what}: scores",
            expected="query and key: the layer is stored as factors",
            remedy='declare it with representation="scores"',
        )
    if "query" in given or "key" in given:
        raise InputError(f"{what}: both scores and factors", expected="either scores, or query and key")


def same_bits(left: Array, right: Array) -> bool:
    """Compare two arrays bit for bit, so that NaN equals itself and -0 does not equal 0.

    Parameters
    ----------
    left, right : ndarray
        Any two arrays.

    Returns
    -------
    bool
        Whether dtype, shape and all bytes agree.
    """
    if left is right:
        return True
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    one, other = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (left, right))
    return np.array_equal(one, other)


def pieces(
    spec: LayerSpec, step: int, given: Mapping[str, Array], key: Array | None, *, new: bool
) -> list[Piece]:
    """Turn what came for one step into pieces of stored arrays.

    Parameters
    ----------
    spec : LayerSpec
        The layer, its representation decided.
    step : int
        Index of the denoiser call.
    given : mapping
        Kind to array, checked.
    key : ndarray or None
        The key to multiply with: the one given, or the static one that came before.
    new : bool
        Whether the key is to be stored.

    Returns
    -------
    list of Piece
        At least one, unless only a static key came again.

    Raises
    ------
    InputError
        If query or key are missing where scores are to be computed.
    """
    found = []
    for kind, dtype in (("lse", "float32"), ("scores", _scores_dtype(spec))):
        if kind in given:
            found.append(_given(spec, kind, step, given[kind], dtype))
    if spec.representation == "factors":
        if "query" in given:
            found.append(_given(spec, "query", step, given["query"], spec.dtype))
        if "key" in given and new:
            found.append(_given(spec, "key", 0 if spec.static_key else step, given["key"], spec.dtype))
    elif "query" in given or ("key" in given and not spec.static_key):
        if key is None or "query" not in given:
            raise InputError(
                f"layer {spec.name!r}: {'key' if key is None else 'query'} of step {step} is missing",
                expected="query and key together: the layer is stored as scores",
            )
        query = given["query"]
        found.append(Piece("scores", step, _multiplied(spec, query, key), query.nbytes + key.nbytes))
    return found


def _scores_dtype(spec: LayerSpec) -> str:
    return "float32" if spec.dtype == "bfloat16" else spec.dtype


def _given(spec: LayerSpec, kind: str, at: int, array: Array, dtype: str) -> Piece:
    what = f"layer {spec.name!r}: {kind}"
    return Piece(kind, at, lambda heads: exact(what, array[heads], dtype), array.nbytes)


def _multiplied(spec: LayerSpec, query: Array, key: Array) -> Rows:
    def rows(heads: slice) -> Array:
        left, right = (
            exact(f"layer {spec.name!r}: {kind}", array[heads], spec.dtype)
            for kind, array in (("query", query), ("key", key))
        )
        out = np.empty((*left.shape[:2], right.shape[1]), stored_dtype(spec.dtype))
        few = _SERIAL // (right.shape[1] * right.shape[2])
        few = few if few >= _FEWEST else left.shape[1]
        right = widened(right)
        with np.errstate(over="ignore"):
            for start in range(0, left.shape[1], few):
                part = slice(start, start + few)
                out[:, part] = scaled_logits(left[:, part], right, spec.logit_scale)
        return out

    return rows
