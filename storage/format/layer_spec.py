"""`LayerSpec`: what one attention site looks like, as declared when a run is created."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any, Literal, cast, get_args

from i2am.storage.errors import InputError
from i2am.storage.format.file_names import check_segment
from i2am.storage.format.tile import Tile

Representation = Literal["auto", "factors", "scores"]
DType = Literal["float16", "bfloat16", "float32"]

MOST = {
    "heads": 1 << 12,
    "head_dim": 1 << 16,
    "ref_prefix": 1 << 22,
    "gen_grid": 1 << 22,
    "ref_grid": 1 << 22,
}
"""What no model has more of; a grid's is that of its patches. Larger claims come from a store that lies."""

OPTIONAL = ("value_norm", "contribution")
"""Arrays that a layer may have beside its attention, or not, as the model lets them be measured."""

UNSAID = {"value_norm": False, "contribution": False, "reference": "reference", "query_of": ""}
"""Fields left out of descriptions where they have these values."""

TEXT = "text"
"""`LayerSpec.reference` of layers whose keys are words."""

_FACTOR_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_SCORE_BYTES = {"float16": 2, "bfloat16": 4, "float32": 4}


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One attention layer of a run: names, sizes and how it is stored.

    Parameters
    ----------
    name : str
        Module path, unique in the run; one path segment.
    heads : int
        Number of attention heads.
    head_dim : int
        Numbers per head in a query or key.
    gen_grid : tuple of int
        (rows, columns) of the tokens of the image being generated.
    ref_grid : tuple of int
        (rows, columns) of the reference tokens that have a place; (0, 0) where none has.
    ref_prefix : int
        Leading reference tokens without a place (class token, pooled embedding).
    representation : {"auto", "factors", "scores"}
        What is stored; "auto" takes the one that needs fewer bytes.
    static_key : bool
        The key does not change over time and is stored once per sample.
    dtype : {"float16", "bfloat16", "float32"}
        The dtype the model used.
    scale : float, optional
        Factor on q·k; None means ``head_dim ** -0.5``.
    lse : bool
        Joint softmax: the log-sum-exp of each row over all keys is stored too.
    module_class : str
        Class name of the module, for the record.
    role : str
        Guidance role of the rows that were kept.
    tile, ref_tile : Tile or six ints, optional
        Where the generated (and the reference) patches lie, if latents were cut into tiles; None: they are
        the whole picture.
    value_norm : bool
        The norm of each reference token's value through the output projection is stored, for each head; once
        where the key is static.
    contribution : bool
        The norm of what the reference adds to each generated token, over that of what it is added to, is
        stored.
    reference : str
        What the keys are of: "reference", "reference-1" and so on where there are several, "text" for words.
    query_of : str
        The layer before it that holds the query of this one too, which has none of its own; "" for none.
    """

    name: str
    heads: int
    head_dim: int
    gen_grid: tuple[int, int]
    ref_grid: tuple[int, int]
    ref_prefix: int = 0
    representation: Representation = "auto"
    static_key: bool = True
    dtype: DType = "float16"
    scale: float | None = None
    lse: bool = False
    module_class: str = ""
    role: str = "cond"
    tile: Tile | None = None
    ref_tile: Tile | None = None
    value_norm: bool = False
    contribution: bool = False
    reference: str = "reference"
    query_of: str = ""

    def __post_init__(self) -> None:
        """Normalise numbers and grids, and refuse what cannot be."""
        check_segment("layer", self.name)
        for field, least in (("heads", 1), ("head_dim", 1), ("ref_prefix", 0)):
            object.__setattr__(self, field, self._count(field, getattr(self, field), least))
            self._bounded(field, getattr(self, field), getattr(self, field))
        for field, least in (("gen_grid", 1), ("ref_grid", 0)):
            grid = getattr(self, field)
            if not isinstance(grid, (tuple, list)) or len(grid) != 2:
                raise self._wrong(field, "(rows, columns)", grid)
            object.__setattr__(self, field, tuple(self._count(field, n, least) for n in grid))
            self._bounded(field, grid[0] * grid[1], grid)
        if (self.ref_grid[0] == 0) != (self.ref_grid[1] == 0) or self.ref < 1:
            raise self._wrong(
                "ref_grid", "at least one reference token, in the grid or as prefix", self.ref_grid
            )
        for field, choices in (("representation", get_args(Representation)), ("dtype", get_args(DType))):
            if getattr(self, field) not in choices:
                raise self._wrong(field, "one of " + ", ".join(map(repr, choices)), getattr(self, field))
        if self.scale is not None:
            scale = float(self.scale)
            if not isfinite(scale) or scale == 0:
                raise self._wrong("scale", "a finite number other than 0", self.scale)
            object.__setattr__(self, "scale", scale)
        for field in ("static_key", "lse", *OPTIONAL):
            if not isinstance(getattr(self, field), bool):
                raise self._wrong(field, "True or False", getattr(self, field))
        for field in ("module_class", "role", "reference", "query_of"):
            if not isinstance(getattr(self, field), str):
                raise self._wrong(field, "a text", getattr(self, field))
        for field in ("tile", "ref_tile"):
            try:
                object.__setattr__(self, field, Tile.read(getattr(self, field)))
            except InputError as error:
                expected = "None or a rectangle (top, left, rows, columns) inside its canvas (rows, columns)"
                raise self._wrong(field, expected, getattr(self, field)) from error

    def _bounded(self, field: str, number: int, got: object) -> None:
        if number > MOST[field]:
            raise self._wrong(field, f"at most {MOST[field]:,}", got)

    def _wrong(self, field: str, expected: str, got: object) -> InputError:
        return InputError(f"layer {self.name!r}: {field}", expected=expected, got=repr(got))

    def _count(self, field: str, value: Any, least: int) -> int:
        try:
            number = value.__index__()
        except AttributeError:
            raise self._wrong(field, f"an integer of at least {least}", value) from None
        if isinstance(value, bool) or number < least:
            raise self._wrong(field, f"an integer of at least {least}", value)
        return int(number)

    @property
    def gen(self) -> int:
        """Number of tokens of the image being generated."""
        return self.gen_grid[0] * self.gen_grid[1]

    @property
    def ref(self) -> int:
        """Number of reference tokens, prefix included."""
        return self.ref_prefix + self.ref_grid[0] * self.ref_grid[1]

    @property
    def logit_scale(self) -> float:
        """The factor on q·k: `scale`, or ``head_dim ** -0.5``."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    def factor_bytes(self, steps: int) -> int:
        """Return the bytes of one sample's query and key over `steps` denoiser calls, before compression."""
        keys = self.ref * (1 if self.static_key else steps)
        queries = 0 if self.query_of else self.gen * steps
        return self.heads * self.head_dim * (queries + keys) * _FACTOR_BYTES[self.dtype]

    def score_bytes(self, steps: int) -> int:
        """Return the bytes of one sample's full scores, float32 for bfloat16, over `steps` denoiser calls."""
        return self.heads * self.gen * self.ref * steps * _SCORE_BYTES[self.dtype]

    def resolve(self, steps: int) -> LayerSpec:
        """Return the layer as stored over `steps` calls: "factors" or "scores", and a number for `scale`."""
        kind = self.representation
        if kind == "auto":
            # The cheaper one; factors where they are equal, because factors are exact.
            kind = "factors" if self.factor_bytes(steps) <= self.score_bytes(steps) else "scores"
        return replace(self, representation=kind, scale=self.logit_scale)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types, one entry per field but `OPTIONAL` ones, grids as lists."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in UNSAID and value == UNSAID[field.name]:
                continue
            value = value.to_json() if isinstance(value, Tile) else value
            found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerSpec:
        """Return the layer of `data`, made by `to_json`. Raises InputError if a field is missing or wrong."""
        known = {f.name for f in fields(cls)}  # other keys are ignored
        try:
            return cls(**cast(dict[str, Any], {k: v for k, v in data.items() if k in known}))
        except TypeError as error:
            raise InputError(
                "layer description", expected="the fields of a LayerSpec", got=str(error)
            ) from error


def query_owner(spec: LayerSpec, before: Mapping[str, LayerSpec]) -> LayerSpec:
    """Return the layer that holds the query of ``spec``, itself if none is named; InputError if none can."""
    if not spec.query_of:
        return spec
    owner = before.get(spec.query_of)
    alike = ("heads", "head_dim", "gen_grid", "dtype", "role", "tile")
    if owner is None or owner.query_of or any(getattr(spec, f) != getattr(owner, f) for f in alike):
        raise InputError(
            f"layer {spec.name!r}: query_of",
            expected="a layer before it with a query of its own, and the same " + ", ".join(alike),
            got=repr(spec.query_of),
        )
    return owner
