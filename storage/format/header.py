"""The root document of a run: everything a reader needs, in one file, checked when it is opened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any

from i2am.storage.errors import DamagedRun, I2AMError, InputError, NewerFormat, NotARun, NotFound, UnknownName
from i2am.storage.format.codecs import get_codec
from i2am.storage.format.file_names import check_segment, sample_file
from i2am.storage.format.layer_spec import LayerSpec, query_owner
from i2am.storage.format.layout import ArrayLayout, image_layout, restore_layouts
from i2am.storage.format.signed_json import DocumentError, check_digest, signed
from i2am.storage.locations.base import Location, TooLarge

FORMAT = 1
"""The format that this version writes, and the newest it reads."""

ROOT = "zarr.json"

OWN_KEYS = frozenset(
    {"format", "run_id", "created", "samples", "timesteps", "layers", "arrays", "codec", "images", "metadata"}
    | {"kept", "digest"}
)
"""Entries of ``attributes["i2am"]`` that the store writes; all others are the caller's."""

Timestep = float | int

MAX_ROOT = 64 << 20
"""Bytes of a root document that are read: a run of a million samples has fewer."""

MAX_IMAGE = 1 << 28
"""Bytes of one image: 16384 x 5461 pixels of three channels."""


@dataclass(frozen=True, slots=True)
class Header:
    """The root document.

    `attributes` are ``attributes["i2am"]`` as stored; `layouts` holds a layout for each layer and array;
    `images` the (y, x, channel) of those declared at creation; `positions` each sample's index on axis 0.
    """

    attributes: dict[str, Any]
    layers: dict[str, LayerSpec]
    layouts: dict[str, dict[str, ArrayLayout]]
    samples: tuple[str, ...]
    timesteps: tuple[Timestep, ...]
    images: dict[str, tuple[int, int, int]]
    positions: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", {sample: i for i, sample in enumerate(self.samples)})

    def position(self, sample: str) -> int:
        if sample not in self.positions:
            raise UnknownName("sample", sample, self.samples)
        return self.positions[sample]

    @property
    def run_id(self) -> str:
        return str(self.attributes["run_id"])

    @property
    def codec(self) -> str:
        return str(self.attributes["codec"])

    def attention_keys(self, index: int) -> Iterator[str]:
        """Yield the paths of all shards of a sample's attention."""
        for layouts in self.layouts.values():
            for layout in layouts.values():
                yield from layout.keys(index)

    def layout(self, spec: LayerSpec, kind: str) -> ArrayLayout:
        """Return where an array of a layer lies: its query may be that of another layer."""
        owner = spec.query_of if kind == "query" and spec.query_of else spec.name
        return self.layouts[owner][kind]

    def image(self, name: str, shape: Sequence[int]) -> ArrayLayout:
        return image_layout(name, image_shape(name, shape), len(self.samples), self.codec)


def image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return an image's (y, x, channel), or raise `InputError`."""
    check_segment("image", name)
    numbers = tuple(int(n) for n in shape) if all(hasattr(n, "__index__") for n in shape) else ()
    if len(numbers) != 3 or min(numbers) < 1:
        raise InputError(
            f"image {name!r}: shape", expected="(y, x, channel), each at least 1", got=str(tuple(shape))
        )
    if prod(numbers) > MAX_IMAGE:
        raise InputError(f"image {name!r}: shape", expected=f"at most {MAX_IMAGE:,} bytes", got=str(numbers))
    return numbers[0], numbers[1], numbers[2]


def _missing(location: Location) -> I2AMError:
    remedy = "check the path, or create a run with create_run"
    if location.names("commits"):
        return _damaged(location, "it is missing")
    if location.names(""):
        return NotARun(
            f"{location.url} is not a run", expected=f"a directory with {ROOT}", got="none", remedy=remedy
        )
    return NotFound(f"no run at {location.url}", remedy=remedy)


def read_root(location: Location) -> dict[str, Any]:
    """Return ``attributes["i2am"]`` of the root document, checked byte for byte."""
    try:
        raw = location.read(ROOT, MAX_ROOT)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _missing(location) from None
    except TooLarge as error:
        raise _damaged(location, str(error)) from error
    own = _own_entries(raw)
    if own is None:
        if b'"i2am"' in raw or b'"run_id"' in raw or location.names("commits"):
            raise _damaged(location, 'it has no attributes["i2am"]')
        raise NotARun(
            f"{location.url} is not a run",
            expected=f'attributes["i2am"] in {ROOT}',
            got="something else",
            remedy="check the path, or create a run with create_run",
        )
    newest = own.get("format")
    try:
        newer = isinstance(newest, int) and newest > FORMAT
        newer = newer and own.get("digest") != signed({**own, "format": FORMAT})["digest"]
        if not newer:
            check_digest(own)
    except (DocumentError, InputError) as error:
        raise _damaged(location, str(error)) from error
    if newer:
        raise NewerFormat(
            f"{location.url}: format",
            expected=f"at most {FORMAT}",
            got=str(newest),
            remedy="install a newer i2am",
        )
    # Other programs may add attributes or consolidated metadata: what is the store's own has its digest.
    document = json.loads(raw)
    if newest != FORMAT or (document.get("zarr_format"), document.get("node_type")) != (3, "group"):
        raise _damaged(location, "it is no Zarr group of format 1")
    return own


def _damaged(location: Location, what: str) -> DamagedRun:
    return DamagedRun(
        f"{location.url}: its root document {ROOT} is damaged: {what}",
        remedy="restore it from a copy of the run",
    )


def _own_entries(raw: bytes) -> dict[str, Any] | None:
    """Return ``attributes["i2am"]`` of a document that may be anything."""
    try:
        own = json.loads(raw)["attributes"]["i2am"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return own if isinstance(own, dict) else None


def interpret(attributes: Mapping[str, Any]) -> Header:
    """Turn the root's entries into checked objects; ValueError or the like if they disagree."""
    samples = _texts(attributes["samples"], "samples")
    for sample in samples:
        sample_file(sample)
    timesteps = _numbers(attributes["timesteps"])
    get_codec(_text(attributes["codec"], "codec"))
    layers: dict[str, LayerSpec] = {}
    layouts: dict[str, dict[str, ArrayLayout]] = {}
    for entry in attributes["layers"]:
        spec = LayerSpec.from_json(entry)
        if spec.representation == "auto" or spec.name in layers:
            raise ValueError(f"layer {spec.name!r} is there twice, or undecided")
        layers[spec.name] = spec
        if spec.query_of and "scores" in (spec.representation, query_owner(spec, layers).representation):
            raise ValueError(f"layer {spec.name!r} has no query to share")
        arrays = attributes["arrays"][spec.name]
        layouts[spec.name] = restore_layouts(spec, len(samples), len(timesteps), arrays)
        for layout in layouts[spec.name].values():
            get_codec(layout.codec)
    images = {name: image_shape(name, shape) for name, shape in attributes["images"].items()}
    if set(attributes["metadata"]) != set(_documents(layouts, images)):
        raise ValueError("its list of metadata documents does not fit its layers and images")
    _text(attributes["run_id"], "run_id")
    return Header(dict(attributes), layers, layouts, samples, timesteps, images)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} is no text")
    return value


def _texts(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values or len(set(values)) != len(values):
        raise ValueError(f"{what} are no list of texts that differ")
    return tuple(_text(value, what) for value in values)


def _numbers(values: Any) -> tuple[Timestep, ...]:
    """The timesteps: finite numbers, at least one."""
    good = isinstance(values, list) and values
    if not good or not all(type(value) in (int, float) and isfinite(value) for value in values):
        raise ValueError("timesteps are no list of finite numbers")
    return tuple(values)


def _documents(
    layouts: Mapping[str, Mapping[str, ArrayLayout]], images: Mapping[str, tuple[int, int, int]]
) -> Iterator[str]:
    """Paths of the metadata documents that are written at creation, the root's left out."""
    yield from ("attention/zarr.json", "images/zarr.json")
    for layer, arrays in layouts.items():
        yield f"attention/{layer}/zarr.json"
        yield from (f"{layout.path}/zarr.json" for layout in arrays.values())
    yield from (f"images/{name}/zarr.json" for name in images)


def load_header(location: Location) -> Header:
    """Read the root document: `NotFound`, `NotARun`, `NewerFormat` or `DamagedRun` if it is none."""
    attributes = read_root(location)
    try:
        return interpret(attributes)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _damaged(location, f"it contradicts itself: {error}") from error
