"""The arrays given to `Sink.put`: checked against their layer, and turned into pieces of stored arrays."""

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
from i2am.storage.format.layout import FLOAT32

Array = np.ndarray[Any, Any]
Rows = Callable[[slice], Array]

_SERIAL = 1 << 16
"""Multiplications that OpenBLAS does on the calling thread. Its own threads spin after each product, which
took 15% of the processors from a model that ran beside the writers on two cores."""

_FEWEST = 8
"""Rows of queries below which a product is left whole."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of one stored array: its rows are computed, in the stored dtype, when they are asked for."""

    kind: str
    at: int  # index along the step axis
    rows: Rows  # slice of heads to their values
    nbytes: int  # kept alive by the piece


def checked(spec: LayerSpec, kind: str, array: Array) -> Array:
    """Return an array; raise `ShapeMismatch` if its shape or kind of number does not fit the layer."""
    what = f"layer {spec.name!r}: {kind}"
    shape, axes = {
        "query": ((spec.heads, spec.gen, spec.head_dim), "[head, gen, dim]"),
        "key": ((spec.heads, spec.ref, spec.head_dim), "[head, ref, dim]"),
        "scores": ((spec.heads, spec.gen, spec.ref), "[head, gen, ref]"),
        "lse": ((spec.heads, spec.gen), "[head, gen]"),
        "value_norm": ((spec.heads, spec.ref), "[head, ref]"),
        "contribution": ((spec.gen,), "[gen]"),
    }[kind]
    if array.shape != shape:
        raise ShapeMismatch(what, expected=f"{shape} {axes}", got=str(array.shape))
    check_float(what, array)
    return array


def check_choice(spec: LayerSpec, given: Mapping[str, Array]) -> None:
    """Raise `InputError` if the arrays of one call do not suit the layer's representation."""
    what = f"layer {spec.name!r}"
    if not given:
        raise InputError(f"{what}: no array", expected="query and key, or scores")
    for kind in FLOAT32:
        if kind in given and not getattr(spec, kind):
            raise InputError(
                f"{what}: {kind}",
                expected=f"none: the layer is declared with {kind}=False",
                remedy=f"declare it with {kind}=True",
            )
    if "query" in given and spec.query_of:
        raise InputError(
            f"{what}: query",
            expected=f"none: it is that of layer {spec.query_of!r}",
            remedy="declare it with query_of=''",
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
    """Compare two arrays bit for bit, so that NaN equals itself and -0 does not equal 0."""
    if left is right:
        return True
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    one, other = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (left, right))
    return np.array_equal(one, other)


def pieces(
    spec: LayerSpec, step: int, given: Mapping[str, Array], key: Array | None, *, new: bool
) -> list[Piece]:
    """Turn the arrays of one step into pieces of stored arrays; none if only a static key came again.

    `key` is the one given, or the static one that came before; `new` says whether it is to be stored.
    """
    found = []
    scores_dtype = "float32" if spec.dtype == "bfloat16" else spec.dtype
    for kind, dtype in (*((kind, "float32") for kind in FLOAT32), ("scores", scores_dtype)):
        if kind in given:
            at = 0 if kind == "value_norm" and spec.static_key else step
            found.append(_given(spec, kind, at, given[kind], dtype))
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
